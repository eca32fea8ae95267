"""EXIficient as an independent judge: the jar inside the PyPI package iso15118, driven through py4j. Never part of
us.

One JVM serves the process. A plain call of the jar rebuilds its XML bindings every time and takes some 30 ms;
`encode` and `decode` call the same steps without that, `plain_encode` and `plain_decode` are the jar's own calls to
compare with.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pathlib
import shutil
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
ISO2 = "urn:iso:15118:2:2013:MsgDef"
ISO20 = "urn:iso:std:iso:15118:-20:CommonMessages"
XMLDSIG = "http://www.w3.org/2000/09/xmldsig#"
_SCHEMAS = {ISO2: "ISO15118_2", ISO20: "ISO15118_20_V2G_CI_CommonMessages"}
# Naming the JDK's own implementations saves a search through the jar with every message.
_OPTIONS = [
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "-Djavax.xml.transform.TransformerFactory=com.sun.org.apache.xalan.internal.xsltc.trax.TransformerFactoryImpl",
    "-Djavax.xml.parsers.SAXParserFactory=com.sun.org.apache.xerces.internal.jaxp.SAXParserFactoryImpl",
    "-Djavax.xml.parsers.DocumentBuilderFactory=com.sun.org.apache.xerces.internal.jaxp.DocumentBuilderFactoryImpl",
]


def folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("CCP_JUDGE_DIR") or ROOT / ".judge")


def jar() -> pathlib.Path:
    return folder() / "iso15118" / "shared" / "EXICodec.jar"


def missing() -> str:
    """Why there is no judge, or an empty string."""
    how = "run `make judge` to fetch it into .judge/, or set CCP_JUDGE_DIR"
    if shutil.which("java") is None:
        return f"EXIficient needs Java, which is not installed; then {how}"
    if not jar().is_file() or not any(folder().glob("share/py4j/py4j*.jar")):
        return f"EXIficient is not in {folder()}: {how}"
    return ""


class Judge:
    def __init__(self) -> None:
        if str(folder()) not in sys.path:
            sys.path.append(str(folder()))
        java_gateway = importlib.import_module("py4j.java_gateway")
        self.gateway = java_gateway.JavaGateway.launch_gateway(
            classpath=str(jar()),
            jarpath=str(next(folder().glob("share/py4j/py4j*.jar"))),
            die_on_exit=True,
            javaopts=_OPTIONS,
        )
        self.jvm = self.gateway.jvm
        self.plain = self.jvm.com.siemens.ct.exi.main.cmd.EXICodec()
        # One codec for each schema keeps its grammars and bindings.
        self.codecs = {name: self.jvm.com.siemens.ct.exi.main.cmd.EXICodec() for name in _SCHEMAS}
        self.grammars: dict[str, Any] = {}
        # Looking a class up by its dotted name costs a round trip for every dot, so it is done once.
        self.Object = self.jvm.java.lang.Object
        self.InputStream = self.jvm.java.io.ByteArrayInputStream
        self.QName = self.jvm.javax.xml.namespace.QName
        self.JAXBElement = self.jvm.javax.xml.bind.JAXBElement
        self.methods = {}
        for method in self.plain.getClass().getSuperclass().getDeclaredMethods():
            method.setAccessible(True)
            self.methods[method.getName(), len(method.getParameterTypes())] = method

    def _call(self, namespace: str, name: str, *arguments: Any) -> Any:
        array = self.gateway.new_array(self.Object, len(arguments))
        for index, argument in enumerate(arguments):
            array[index] = argument
        return self.methods[name, len(arguments)].invoke(self.codecs[namespace], array)

    def plain_decode(self, encoded: bytes, namespace: str) -> str:
        text: str | None = self.plain.decode(encoded, namespace)
        if text is None:
            raise ValueError(self.plain.get_last_decoding_error())
        return text

    def plain_encode(self, text: str, namespace: str) -> bytes:
        encoded = self.plain.encode(text, namespace)
        if encoded is None:
            raise ValueError(self.plain.get_last_encoding_error())
        return bytes(encoded)

    def _prepare(self, encoded: bytes, namespace: str) -> None:
        """A first plain call sets up grammars and bindings."""
        if namespace not in self.grammars:
            text = self.codecs[namespace].decode(encoded, namespace)
            self.codecs[namespace].encode(text, namespace)
            schema = getattr(self.jvm.com.siemens.ct.exi.main.cmd.BuiltInSchema, _SCHEMAS[namespace])
            self.grammars[namespace] = self._call(namespace, "getGrammar", schema)

    def decode(self, encoded: bytes, namespace: str) -> str:
        self._prepare(encoded, namespace)
        xml = self._call(namespace, "decode_stream", self.InputStream(encoded))
        text: str = self._call(namespace, "marshallToJSON", self._call(namespace, "unmarshallToMessage", xml))
        return text

    def xml(self, encoded: bytes, namespace: str) -> str:
        """The message as XML."""
        self._prepare(encoded, namespace)
        text: str = self._call(namespace, "decode_stream", self.InputStream(encoded))
        return text

    def encode_xml(self, document: bytes, namespace: str) -> bytes:
        """The EXI of an XML document, after a first `decode` or `xml` of this namespace."""
        return bytes(
            self._call(namespace, "encode", self.InputStream(document), self.grammars[namespace]).toByteArray()
        )

    def encode(self, text: str, namespace: str) -> bytes:
        """After a first `decode` of this namespace."""
        value = self._call(namespace, "unmarshallJSONToMessage", text)
        if namespace == ISO20:
            # Two messages share types with others, so the jar gives the root its name itself.
            root = self.QName(ISO20, next(iter(json.loads(text))))
            value = self.JAXBElement(root, value.getClass(), value.getValue())
        stream = self._call(namespace, "marshalToInputStream", value)
        return bytes(self._call(namespace, "encode", stream, self.grammars[namespace]).toByteArray())

    def close(self) -> None:
        self.gateway.shutdown()


@functools.cache
def judge() -> Judge:
    """The one judge of this process; it ends with it."""
    return Judge()
