"""Records a terminal session and draws it as an animated SVG. The output and its times are those of the commands."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from html import escape
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Final

from rich.ansi import AnsiDecoder
from rich.style import Style
from rich.text import Text

COLUMNS: Final = 134
ROWS: Final = 32
LENGTH: Final = 120.0
"""Seconds of the recording at most: pauses for reading shrink where it would take longer."""
_TYPING: Final = 0.045  # Seconds for each character of a command.
_CHAR, _LINE, _LEFT, _TOP = 7.83, 18.0, 18.0, 52.0  # Pixels, at 13 pixels of a monospaced font.
_COLOURS: Final = {1: "red", 2: "green", 3: "yellow", 4: "blue", 5: "violet", 6: "cyan", 8: "soft"}


@dataclass
class Line:
    """A line of the session. at: seconds since the command began to run; None for the command itself."""

    text: Text
    at: float | None


@dataclass
class Session:
    """Commands with what they printed."""

    lines: list[Line] = field(default_factory=list)
    shown: tuple[str, str] = ("", "")
    """A path of this machine, and what the session shows in its place."""

    def run(self, command: str, cwd: Path, env: Mapping[str, str]) -> int:
        """Run a command in a terminal of its own, and record it. Returns its exit status."""
        self.lines.append(Line(Text.assemble(("$ ", "bright_black"), (command, "bold")), None))
        master, terminal = pty.openpty()
        ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 500, COLUMNS, 0, 0))
        began = time.monotonic()
        given = {**os.environ, **env, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=cwd, env=given, stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        decoder, rest = AnsiDecoder(), b""
        while True:
            ready, _, _ = select.select([master], [], [], 60)
            try:
                data = os.read(master, 65_536) if ready else b""
            except OSError:  # The other end is closed.
                data = b""
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            at = time.monotonic() - began
            for each in whole:
                self._add(decoder.decode_line(self._read(each)), at)
        if rest.strip():
            self._add(decoder.decode_line(self._read(rest)), time.monotonic() - began)
        os.close(master)
        status = process.wait()
        self._add(Text(""), time.monotonic() - began)
        return status

    def _read(self, line: bytes) -> str:
        text = line.decode("utf-8", "replace").rstrip("\r")
        here, shown = self.shown
        if not here:
            return text
        missing = " " * (len(here) - len(shown))  # A column of a table keeps its width.
        return re.sub(f"{re.escape(here)}(\\S*)(  )?", lambda m: shown + m[1] + (m[2] + missing if m[2] else ""), text)

    def _add(self, text: Text, at: float) -> None:
        text.expand_tabs(8)
        for start in range(0, max(1, len(text)), COLUMNS):
            self.lines.append(Line(text[start : start + COLUMNS], at))

    @property
    def transcript(self) -> str:
        """The session as text."""
        return "\n".join(line.text.plain.rstrip() for line in self.lines).strip() + "\n"

    def svg(self, title: str) -> str:
        """The session as an animated SVG, in the colours that the viewer prefers; without motion its beginning."""
        times, length = self._timed()
        width, height = 2 * _LEFT + COLUMNS * _CHAR, _TOP + ROWS * _LINE + 14
        scroll, cover, typing = (list[str]() for _ in range(3))
        for number, (line, at) in enumerate(zip(self.lines, times, strict=True)):
            share = f"{100 * at / length:.3f}%"
            scroll.append(f"{share}{{transform:translateY({-_LINE * max(0, number + 1 - ROWS):g}px)}}")
            cover.append(f"{share}{{transform:translateY({_LINE * (number + 1):g}px)}}")
            if line.at is None:
                for place in range(2, len(line.text) + 1):
                    moment = f"{100 * (at + _TYPING * place) / length:.3f}%"
                    typing.append(f"{moment}{{transform:translate({_CHAR * place:.1f}px,{_LINE * number:g}px)}}")
        texts = "".join(
            f'<text y="{_LINE * number + 13:g}">{_spans(line.text)}</text>'
            for number, line in enumerate(self.lines)
            if line.text.plain.strip()
        )
        all_lines = _LINE * (len(self.lines) + 1)
        return _SVG.format(
            width=f"{width:g}", height=f"{height:g}", title=escape(title), length=f"{length:.1f}",
            scroll="".join(scroll), cover="".join(cover), typing="".join(typing), texts=texts, left=f"{_LEFT:g}",
            top=f"{_TOP:g}", view=f"{ROWS * _LINE:g}", all_lines=f"{all_lines:g}", line=f"{_LINE:g}",
            middle=f"{width / 2:g}", inner=f"{width - 2 * _LEFT + 12:g}",
        )  # fmt: skip

    def _timed(self) -> tuple[list[float], float]:
        """When each line appears, and the length, in seconds."""
        groups: list[list[Line]] = []
        for line in self.lines:
            if line.at is None:
                groups.append([])
            groups[-1].append(line)
        pauses = [1.5 + 0.45 * len(group) for group in groups]
        busy = sum(_TYPING * len(group[0].text) + (group[-1].at or 0.0) for group in groups)
        share = min(1.0, max(0.1, (LENGTH - busy) / sum(pauses)))
        now, times = 0.0, []
        for group, pause in zip(groups, pauses, strict=True):
            times.append(now)
            now += _TYPING * (len(group[0].text) + 8)
            times += [now + (line.at or 0.0) for line in group[1:]]
            now += (group[-1].at or 0.0) + share * pause
        return times, now


def _spans(text: Text) -> str:
    """The parts of a line as elements with classes."""
    found = []
    for part in text.divide(sorted({place for span in text.spans for place in (span.start, span.end)})):
        if part.plain:
            classes = sorted({name for span in part.spans for name in _classes(span.style)} | set(_classes(part.style)))
            body = escape(part.plain)
            found.append(f'<tspan class="{" ".join(classes)}">{body}</tspan>' if classes else body)
    return "".join(found).rstrip()


def _classes(style: str | Style) -> Sequence[str]:
    style = Style.parse(style) if isinstance(style, str) else style
    classes = ["bold"] if style.bold else []
    if style.dim:
        classes.append("soft")
    if style.color is not None and style.color.number is not None:
        number = style.color.number
        classes.append(_COLOURS.get(number if number == 8 else number % 8, ""))
    return [name for name in classes if name]


_SVG: Final = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img" aria-labelledby="t"><title id="t">{title}</title><style>
svg{{--back:#fbfcfd;--bar:#e8edf1;--line:#d5dce2;--text:#17212b;--soft:#5d6b79;--red:#a3201b;--green:#17692f;\
--yellow:#7a4a00;--blue:#1a4fb0;--violet:#7a2a9a;--cyan:#0b6560}}
@media (prefers-color-scheme:dark){{svg{{--back:#10161c;--bar:#1c252e;--line:#2c3843;--text:#e6ecf1;--soft:#98a6b3;\
--red:#ffaaa3;--green:#8fdcaa;--yellow:#f3c877;--blue:#8ab8ff;--violet:#dfa6f7;--cyan:#6fd0c6}}}}
text{{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--text);\
white-space:pre}}
.bold{{font-weight:700}}.soft{{fill:var(--soft)}}.red{{fill:var(--red)}}.green{{fill:var(--green)}}\
.yellow{{fill:var(--yellow)}}.blue{{fill:var(--blue)}}.violet{{fill:var(--violet)}}.cyan{{fill:var(--cyan)}}
.window{{fill:var(--back);stroke:var(--line)}}.bar{{fill:var(--bar)}}.cover{{fill:var(--back);display:none}}
.title{{font:13px system-ui,sans-serif;fill:var(--soft);text-anchor:middle}}
@media (prefers-reduced-motion:no-preference){{.cover{{display:inline}}
.scroll,.cover{{animation-duration:{length}s;animation-iteration-count:infinite;animation-timing-function:step-end}}
.scroll{{animation-name:s}}.rest{{animation-name:c}}.typing{{animation-name:y}}}}
@keyframes s{{{scroll}}}
@keyframes c{{{cover}}}
@keyframes y{{{typing}}}
</style><rect class="window" x=".5" y=".5" width="calc({width}px - 1px)" height="calc({height}px - 1px)" rx="8"/>
<path class="bar" d="M1 36V9a8 8 0 0 1 8-8h{width}v35z" clip-path="url(#w)"/>
<text class="title" x="{middle}" y="23">{title}</text>
<clipPath id="w"><rect x="1" y="1" width="calc({width}px - 2px)" height="calc({height}px - 2px)" rx="8"/></clipPath>
<clipPath id="v"><rect x="-4" width="{inner}" height="{view}"/></clipPath>
<g transform="translate({left} {top})" clip-path="url(#v)"><g class="scroll">{texts}
<rect class="cover rest" x="-4" width="{width}" height="{all_lines}"/>
<rect class="cover typing" width="{width}" height="{line}"/>
</g></g></svg>
"""
