"""From declarations of the messages to the tables that one loop reads by and one loop writes by.

A declaration (`ElementType`) lists the particles of an element in document order. What EXI derives from a schema
follows from it: in every state the productions that may come next are numbered in order, and n of them take
`n.bit_length()` bits, because code n is the way out to what the schema does not foresee (the document and fragment
states have no way out, they give codes and widths themselves).

Reading. Optional parts, choices and bounded lists unfold into states without any stack or counter. In each state
eight bits are looked at together, and the `DecoderStep` they lead to runs over all codes up to the next value: it says
how many bits that were, what to build from the values read so far, and how to read the next value. Steps are made when
they are first needed. Both forms of the end of a full list and both forms of an empty value are read.

Writing. A `ElementType` holds, for every state, bits and width of each production; the loop looks the code up and
appends the value. Only the form that the specification asks for is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

from ccp.exi.bits import PADDING, TRUNCATED, CodecError, read_binary

ATTRIBUTE, ELEMENT, TEXT, REFUSED = "attribute", "element", "text", "refused"
END = -1


class SimpleType(NamedTuple):
    """A simple type: how values are read, packed, shown as JSON and loaded from it; `empty` is the value of no text."""

    read: Callable[[bytes, int, int, Any], tuple[Any, int]]
    pack: Callable[[Any, Any], tuple[int, int]]
    show: Callable[[Any], Any]
    load: Callable[[Any, Any], Any]
    limit: Any
    empty: Any = None


class Alternative(NamedTuple):
    name: str
    kind: SimpleType | ElementType | None


class Particle(NamedTuple):
    """One place in a content model. `options` has more than one entry in a choice, each with a slot of its own in the
    value.

    most: None stands for one; `ours` says that the bound is ours and the schema has none.
    """

    sort: str
    options: tuple[Alternative, ...]
    optional: bool = False
    most: int | None = None
    ours: bool = False


class ElementType:
    """An element's type. The value is a `cls` with one slot an option; without `cls` it is its only slot's value
    itself.

    mixed: text may stand between elements, which adds a production to every state behind the attributes (refused
    here). mark: the positions of such elements are of interest.
    """

    def __init__(self, cls: type[Any] | None, *particles: Particle, mixed: bool = False, mark: bool = False) -> None:
        self.cls = cls
        self.particles = particles
        self.mixed = mixed
        self.mark = mark
        self.table: EncodingTable | None = None
        self.slots = tuple(
            (index, particle, option)
            for index, particle in enumerate(particles)
            if particle.sort != REFUSED
            for option in particle.options
            if option.kind is not None
        )

    def split(self, value: Any) -> tuple[Any, ...]:
        """The slots of a value. Raises Flaw where it is of another class."""
        if self.cls is not None:
            if type(value) is not self.cls:
                raise CodecError(f"{self.cls.__name__} expected, not {type(value).__name__}")
            return value  # type: ignore[no-any-return]
        if len(self.slots) == 1:
            return (value,)
        return tuple(value if type(value) is getattr(option.kind, "cls", None) else None for _, _, option in self.slots)

    def join(self, slots: list[Any]) -> Any:
        """The value of these slots, the inverse of `split`. Raises Flaw where a choice is not made or made twice."""
        if self.cls is not None:
            return tuple.__new__(self.cls, slots)
        made = [slot for slot in slots if slot is not None]
        if len(made) != 1:
            raise CodecError("exactly one member expected")
        return made[0]

    def productions(self, index: int, count: int) -> list[tuple[int, Alternative | None]]:
        """What may come behind `count` items of particle `index`: (particle, option) in the order of the codes."""
        found: list[tuple[int, Alternative | None]] = []
        for place in range(index, len(self.particles)):
            particle = self.particles[place]
            read = count if place == index else 0
            if read and not particle.ours and read == particle.most:
                continue
            found += [(place, option) for option in particle.options]
            if not particle.optional and not read:
                break
        else:
            found.append((END, None))
        if self.mixed and (index == len(self.particles) or self.particles[index].sort != ATTRIBUTE):
            found.append((len(self.particles), Alternative("text between elements", None)))
        return found

    def tabulate(self) -> EncodingTable:
        """What the writing loop needs, made when it is first needed."""
        self.table = EncodingTable(self.cls, self.codes(0, 0, 0), tuple(_plan(self, *slot) for slot in self.slots))
        return self.table

    def codes(self, index: int, count: int, pending: int) -> dict[str, tuple[int, int]]:
        """Bits and width of each production by name (the end: ""), with `pending` zero bits before and that of CH."""
        productions = self.productions(index, count)
        width = len(productions).bit_length() + pending
        table: dict[str, tuple[int, int]] = {}
        for code, (place, option) in enumerate(productions):
            if option is None:
                table[""] = code, width
            elif option.kind is not None:
                particle = self.particles[place]
                merged = isinstance(option.kind, SimpleType) and particle.sort == ELEMENT and particle.most is None
                table[option.name] = (code << 1, width + 1) if merged else (code, width)
        return table


class SlotEncoder(NamedTuple):
    """How one slot of a record is written: by `pack`, or as a `record` (in a list, each item as one).

    after, full: the codes that follow, behind an item of a list that is full in particular.
    """

    name: str
    most: int | None
    pack: Callable[[Any, Any], tuple[int, int]] | None
    limit: Any
    record: Any
    after: dict[str, tuple[int, int]]
    full: dict[str, tuple[int, int]]


class EncodingTable(NamedTuple):
    """How a record is written; `start` are the first codes."""

    cls: type[Any] | None
    start: dict[str, tuple[int, int]]
    plans: tuple[SlotEncoder, ...]


def simple(leaf: SimpleType) -> ElementType:
    """The record of an element that holds nothing but a value."""
    return ElementType(None, Particle(TEXT, (Alternative("value", leaf),)))


def _plan(record: ElementType, index: int, particle: Particle, option: Alternative) -> SlotEncoder:
    name, kind = option
    if particle.most is not None:
        inner = simple(kind) if isinstance(kind, SimpleType) else kind
        after, full = record.codes(index, 1, 0), record.codes(index, particle.most, 0)
        return SlotEncoder(name, particle.most, None, None, inner, after, full)
    # An element with simple content ends with one zero bit, which is written together with what follows.
    pending = 1 if isinstance(kind, SimpleType) and particle.sort == ELEMENT else 0
    after = record.codes(index + 1, 0, pending)
    if isinstance(kind, SimpleType):
        return SlotEncoder(name, None, kind.pack, kind.limit, None, after, after)
    return SlotEncoder(name, None, None, None, kind, after, after)


# --- writing ----------------------------------------------------------------------------------------------------------


def write(record: ElementType, value: Any, bits: int, width: int, out: list[bytes]) -> tuple[int, int]:
    """Append the content of an element and its end. `bits`, `width`: what is not yet in `out`. Raises Flaw.

    Where it fails, the flaw gets the names of the elements inside of this one; `value` is the element itself.
    """
    cls, codes, plans = record.table or record.tabulate()
    slots = value if type(value) is cls else record.split(value)
    name = ""
    try:
        for (name, most, pack, limit, inner, after, full), item in zip(plans, slots):  # noqa: B905 (strict costs a tenth)
            if item is None:
                continue
            if most is not None:
                if type(item) is not tuple or len(item) > most:
                    many = f"more than {most} {name}: " if type(item) is tuple else ""
                    raise CodecError(f"{many}a tuple of at most {most} items expected")
                for each in item:
                    code, size = codes[name]
                    bits, width = write(inner, each, bits << size | code, width + size, out)
                    codes = after
                if len(item) == most:
                    codes = full
                continue
            code, size = codes[name]
            if pack is None:
                bits, width = write(inner, item, bits << size | code, width + size, out)
            else:
                packed, more = pack(item, limit)
                bits = (bits << size | code) << more | packed
                width += size + more
                if width > 512:
                    rest = width & 7
                    out.append((bits >> rest).to_bytes(width >> 3))
                    bits &= (1 << rest) - 1
                    width = rest
            codes = after
        name = ""
        code, size = codes[""]
    except CodecError as flaw:
        if name and name != "value":
            flaw.names.append(name)
        raise
    except KeyError:
        raise CodecError(f"{_expected(codes)} expected" + (f" before {name}" if name else "")) from None
    return bits << size | code, width + size


def _expected(codes: dict[str, tuple[int, int]]) -> str:
    return " or ".join(name or "the end" for name in codes)


def flush(bits: int, width: int, out: list[bytes]) -> bytes:
    """The octets of all that was written, the last one padded with zero bits."""
    pad = -width & 7
    out.append((bits << pad).to_bytes(width + pad >> 3))
    return b"".join(out)


# --- reading ----------------------------------------------------------------------------------------------------------


class ElementPosition(NamedTuple):
    """An element whose position is kept: bits between its event code and the code that follows its end."""

    name: str
    value: Any
    start: int
    end: int


# An action builds: (make, n) replaces the last n values by make(values); (constant, 0) appends; (…, START or STOP)
# marks.
START, STOP = -1, -2
Action = tuple[Any, int]


class DecoderStep(NamedTuple):
    bits: int
    actions: tuple[Action, ...]
    read: Callable[[bytes, int, int, Any], tuple[Any, int]] | None
    limit: Any
    next: DecoderState | None


class Transition(NamedTuple):
    """One code in a state: what it stands for. `refuse` is the reason where it is refused."""

    code: str
    actions: tuple[Action, ...] = ()
    leaf: SimpleType | None = None
    next: DecoderState | None = None
    refuse: str = ""


class DecoderState(dict[int, DecoderStep]):
    """A state of the reading automaton; as a mapping, the steps by the eight bits that come next."""

    def __init__(self, path: str, expand: Callable[[], Iterator[Transition]]) -> None:
        super().__init__()
        self.path = path
        self.expand = expand

    def __repr__(self) -> str:
        # That of a dictionary would unfold all states behind this one, in any traceback that shows variables.
        return f"<State in {self.path or 'the stream'}>"

    @cached_property
    def moves(self) -> list[Transition]:
        """The longest codes first. A code of more than eight bits is taken in two pieces."""
        short: list[Transition] = []
        long: dict[str, list[Transition]] = {}
        for move in self.expand():
            if len(move.code) <= 8:
                short.append(move)
            else:
                long.setdefault(move.code[:8], []).append(move._replace(code=move.code[8:]))
        short += [Transition(code, next=DecoderState(self.path, partial(iter, moves))) for code, moves in long.items()]
        return sorted(short, key=lambda move: -len(move.code))

    def __missing__(self, window: int) -> DecoderStep:
        step = self._step(f"{window:08b}")
        low = 8 - step.bits
        first = window >> low << low
        # Whatever follows the bits of the step, it is the same step.
        for other in range(first, first + (1 << low)):
            self[other] = step
        return step

    def _step(self, window: str) -> DecoderStep:
        state, at = self, 0
        actions: list[Action] = []
        while True:
            if at and len(window) - at < len(state.moves[0].code):
                return DecoderStep(at, tuple(actions), None, None, state)
            move = next((move for move in state.moves if window.startswith(move.code, at)), None)
            if move is None:
                raise CodecError("content that the schema does not foresee", (state.path,), at)
            if move.refuse:
                raise CodecError(move.refuse, (state.path,), at)
            at += len(move.code)
            # Marks get their place within the step.
            actions += [(make, n) if n >= 0 else ((make, at), n) for make, n in move.actions]
            if move.leaf:
                return DecoderStep(at, tuple(actions), move.leaf.read, move.leaf.limit, move.next)
            if move.next is None:
                return DecoderStep(at, tuple(actions), None, None, None)
            state = move.next


def read(
    octets: bytes, state: DecoderState | None, at: int
) -> tuple[Any, list[ElementPosition], list[tuple[int, int]], int]:
    """Read from bit `at` on: the value, the marks, where binary values stand (bit, octets), the position behind.

    Raises Flaw with offset and path in `names`.
    """
    data = octets + PADDING
    end = 8 * len(octets)
    stack: list[Any] = []
    push = stack.append
    marks: list[ElementPosition] = []
    spans: list[tuple[int, int]] = []
    open_marks: list[tuple[str, int]] = []
    last = state
    try:
        while state is not None:
            last = state
            index = at >> 3
            bits, actions, reader, limit, state = state[(data[index] << 8 | data[index + 1]) >> 8 - (at & 7) & 255]
            for make, count in actions:
                if count > 0:
                    stack[-count:] = (make(stack[-count:]),)
                elif not count:
                    push(make)
                elif count == START:
                    open_marks.append((make[0], at + make[1]))
                else:
                    name, start = open_marks.pop()
                    marks.append(ElementPosition(name, stack[-1], start, at + make[1]))
            at += bits
            if reader is not None:
                value, at = reader(data, at, end, limit)
                push(value)
                if reader is read_binary:
                    spans.append((at - 8 * len(value), len(value)))
    except CodecError as flaw:
        flaw.offset = at + (flaw.offset or 0)
        flaw.names = flaw.names or [state.path if state else ""]
        if flaw.offset >= end:
            flaw.reason, flaw.offset = TRUNCATED, end
        raise
    except IndexError:
        at = end + 1
    if at > end:
        raise CodecError(TRUNCATED, (last.path if last else "",), end)
    return stack[0], marks, spans, at


class ParentFrame(NamedTuple):
    """Where reading goes on behind an element: at option `option` of particle `place`, with `items` of it before."""

    record: ElementType
    place: int
    option: int
    items: int
    path: str
    up: ParentFrame | None


class Automaton:
    """The reading automaton of documents, or of fragments when there is a code for their end.

    roots: record by code and name. States are made when first reached and shared by all ways that lead to them, so
    their number is bounded by the declarations.
    """

    def __init__(self, roots: dict[str, Alternative], end: int | None = None, width: int = 0) -> None:
        self.roots = roots
        self.states: dict[tuple[ElementType, int, int, ParentFrame | None, str], DecoderState] = {}
        self.leaves: dict[SimpleType, ElementType] = {}
        self.ending = None if end is None else DecoderState("", lambda: iter((Transition(f"{end:0{width}b}"),)))
        self.start = DecoderState("", self.openings)

    def openings(self) -> Iterator[Transition]:
        for code, option in self.roots.items():
            yield self._open(code, (), option, None, option.name)

    def unfold(self) -> None:
        """Make all states now, so that no message, however strange, has to wait for more than a few steps."""
        todo, seen = [self.start], {id(self.start)}
        while todo:
            for move in todo.pop().moves:
                if move.next is not None and id(move.next) not in seen:
                    seen.add(id(move.next))
                    todo.append(move.next)

    def _open(
        self, code: str, actions: tuple[Action, ...], option: Alternative, up: ParentFrame | None, path: str
    ) -> Transition:
        record = option.kind
        if isinstance(record, SimpleType):
            record = self.leaves.setdefault(record, simple(record))
        assert record is not None
        if record.mark:
            actions += ((option.name, START),)
        return Transition(code, actions, next=self._state(record, 0, 0, up, path))

    def _state(self, record: ElementType, index: int, count: int, up: ParentFrame | None, path: str) -> DecoderState:
        key = record, index, count, up, path
        if key not in self.states:
            self.states[key] = DecoderState(path, partial(self._moves, *key))
        return self.states[key]

    def _moves(
        self, record: ElementType, index: int, count: int, up: ParentFrame | None, path: str
    ) -> Iterator[Transition]:
        productions = record.productions(index, count)
        width = len(productions).bit_length()
        for number, (place, option) in enumerate(productions):
            code = f"{number:0{width}b}"
            if option is None:
                actions, after = self._leave(record, index, count, up)
                yield Transition(code, actions, next=after)
                if count and width == 1:
                    # The end of a full list as endless-loop encoders write it. A conformant end is followed by another
                    # zero bit in all of our messages, so the two cannot be taken for one another.
                    yield Transition("01", actions, next=after)
                continue
            if option.kind is None:
                yield Transition(code, refuse=f"{option.name} is not supported")
                continue
            particle = record.particles[place]
            read = count if place == index else 0
            chosen = particle.options.index(option)
            here = ParentFrame(record, place, chosen, read, path, up)
            actions = self._absent(record, index, count, place)
            if record.cls is not None:
                actions += ((None, 0),) * chosen
            if particle.sort == ELEMENT:
                if read and read == particle.most:
                    yield Transition(code, refuse=f"more than {read} {option.name}")
                else:
                    yield self._open(code, actions, option, here, f"{path}/{option.name}")
                continue
            assert isinstance(option.kind, SimpleType)
            yield Transition(code, actions, option.kind, self._state(record, place + 1, 0, up, path))
            if particle.sort == TEXT:
                # Behind the way out stands the end of the element as its first choice: a value that is empty.
                out = f"{len(productions):0{width}b}"
                if option.kind.empty is None:
                    yield Transition(out + "000", refuse="an empty value")
                else:
                    more, after = self._leave(record, place + 1, 0, up)
                    yield Transition(out + "000", (*actions, (option.kind.empty, 0), *more), next=after)
                yield Transition(out, refuse="a deviation from the schema (such as xsi:type or untyped content)")
        full = record.particles[index] if index < len(record.particles) else None
        if full is not None and not full.ours and count > 1 and count == full.most:
            # The way out behind a full list: an encoder that does not refuse the next item writes it as unforeseen.
            yield Transition(f"{len(productions):0{width}b}", refuse=f"more than {count} {full.options[0].name}")

    def _leave(
        self, record: ElementType, index: int, count: int, up: ParentFrame | None
    ) -> tuple[tuple[Action, ...], DecoderState | None]:
        """What the end of an element does, and the state behind it."""
        actions = self._absent(record, index, count, len(record.particles))
        if record.cls is not None:
            actions += ((partial(tuple.__new__, record.cls), len(record.slots)),)
        if record.mark:
            actions += ((None, STOP),)
        if up is None:
            return actions, self.ending
        particle = up.record.particles[up.place]
        if particle.most is None:
            if up.record.cls is not None:
                actions += ((None, 0),) * (len(particle.options) - 1 - up.option)
            return actions, self._state(up.record, up.place + 1, 0, up.up, up.path)
        return actions, self._state(up.record, up.place, up.items + 1, up.up, up.path)

    def _absent(self, record: ElementType, index: int, count: int, place: int) -> tuple[Action, ...]:
        """Close the list that was being read, and fill the slots of what is left out up to particle `place`."""
        actions: tuple[Action, ...] = ()
        for between in range(index, place):
            particle = record.particles[between]
            if between == index and count:
                actions += ((tuple, count),)
            elif particle.sort != REFUSED:
                actions += ((None if particle.most is None else (), 0),) * len(particle.options)
        return actions
