// Puts a file into the field for a message: a text as it is, anything else as Base64. The page works without it.
"use strict";
(() => {
  const area = document.getElementById("message");
  const chooser = document.getElementById("file");
  const form = area && area.form;
  if (!area || !chooser || !form) return;
  chooser.parentElement.hidden = false;

  const isText = (bytes) => bytes.length > 0 && bytes.every((byte) => (byte >= 32 && byte < 127) || byte === 9 || byte === 10 || byte === 13);
  const load = async (file) => {
    if (file.size > 1000000) { area.value = ""; area.placeholder = "The file is larger than a message can be."; return; }
    const bytes = new Uint8Array(await file.arrayBuffer());
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    area.value = isText(bytes) || bytes[0] === 60 ? new TextDecoder().decode(bytes) : btoa(text);
    area.focus();
  };
  chooser.addEventListener("change", () => { if (chooser.files.length) load(chooser.files[0]); });
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    form.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    load(event.dataTransfer.files[0]);
  });
})();
