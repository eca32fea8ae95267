"""The decoding loop and its automaton.

Optional particles, choices and bounded lists unfold into states; there is no stack and no counter. In each state the
loop looks at the next eight bits together. The `DecoderStep` that they select covers all codes up to the next value:
how many bits these are, what to build from the values so far, and how to read the next value. Steps are computed when
they are first needed. Both forms of the end of a full list and both forms of an empty value are accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

from ccp.exi.bits import PADDING, TRUNCATED, CodecError, read_binary
from ccp.exi.schema import ELEMENT, REFUSED, TEXT, Alternative, ElementType, SimpleType, simple_element


class ElementPosition(NamedTuple):
    """An element whose position is reported: from the bit after its event code to the bit after the code of its end."""

    name: str
    value: Any
    start: int
    end: int


# An action builds: (make, n) replaces the last n values by make(values); (constant, 0) appends a value; (…, START) and
# (…, STOP) report the position of an element.
START, STOP = -1, -2
Action = tuple[Any, int]


class DecoderStep(NamedTuple):
    """One step of the loop. bits: how many to skip. read, limit: reader of the next value, None if there is none."""

    bits: int
    actions: tuple[Action, ...]
    read: Callable[[bytes, int, int, Any], tuple[Any, int]] | None
    limit: Any
    next: DecoderState | None


class Transition(NamedTuple):
    """One code in a state. refuse: why it is not accepted; empty if it is."""

    code: str
    actions: tuple[Action, ...] = ()
    simple: SimpleType | None = None
    next: DecoderState | None = None
    refuse: str = ""


class DecoderState(dict[int, DecoderStep]):
    """A state of the automaton. As a mapping: the steps by the next eight bits."""

    def __init__(self, path: str, expand: Callable[[], Iterator[Transition]]) -> None:
        """path: element path, for errors. expand: computes the transitions."""
        super().__init__()
        self.path = path
        self.expand = expand

    def __repr__(self) -> str:
        # The default would unfold every state after this one in a traceback that shows variables.
        return f"<DecoderState in {self.path or 'the stream'}>"

    @cached_property
    def transitions(self) -> list[Transition]:
        """The transitions, longest codes first. A code of more than eight bits is split into two."""
        short: list[Transition] = []
        long: dict[str, list[Transition]] = {}
        for transition in self.expand():
            if len(transition.code) <= 8:
                short.append(transition)
            else:
                long.setdefault(transition.code[:8], []).append(transition._replace(code=transition.code[8:]))
        short += [Transition(code, next=DecoderState(self.path, partial(iter, rest))) for code, rest in long.items()]
        return sorted(short, key=lambda transition: -len(transition.code))

    def __missing__(self, window: int) -> DecoderStep:
        step = self._step(f"{window:08b}")
        low = 8 - step.bits
        first = window >> low << low
        # The bits after those of the step make no difference.
        for other in range(first, first + (1 << low)):
            self[other] = step
        return step

    def _step(self, window: str) -> DecoderStep:
        state, used = self, 0
        actions: list[Action] = []
        while True:
            if used and len(window) - used < len(state.transitions[0].code):
                return DecoderStep(used, tuple(actions), None, None, state)
            transition = next((t for t in state.transitions if window.startswith(t.code, used)), None)
            if transition is None:
                raise CodecError("content that the schema does not foresee", (state.path,), used)
            if transition.refuse:
                raise CodecError(transition.refuse, (state.path,), used)
            used += len(transition.code)
            # Positions are relative to the start of the step.
            actions += [(make, n) if n >= 0 else ((make, used), n) for make, n in transition.actions]
            if transition.simple:
                return DecoderStep(
                    used, tuple(actions), transition.simple.read, transition.simple.limit, transition.next
                )
            if transition.next is None:
                return DecoderStep(used, tuple(actions), None, None, None)
            state = transition.next


def read(
    encoded: bytes, state: DecoderState | None, position: int
) -> tuple[Any, list[ElementPosition], list[tuple[int, int]], int]:
    """Decode from a bit position on.

    Returns the value, the reported elements, where binary values are (first bit, length in bytes), and the position
    after the end. Raises CodecError with bit offset, and the element path in `names`.
    """
    data = encoded + PADDING
    end = 8 * len(encoded)
    stack: list[Any] = []
    push = stack.append
    positions: list[ElementPosition] = []
    spans: list[tuple[int, int]] = []
    started: list[tuple[str, int]] = []
    last = state
    try:
        while state is not None:
            last = state
            index = position >> 3
            bits, actions, reader, limit, state = state[
                (data[index] << 8 | data[index + 1]) >> 8 - (position & 7) & 255
            ]
            for make, count in actions:
                if count > 0:
                    stack[-count:] = (make(stack[-count:]),)
                elif not count:
                    push(make)
                elif count == START:
                    started.append((make[0], position + make[1]))
                else:
                    name, start = started.pop()
                    positions.append(ElementPosition(name, stack[-1], start, position + make[1]))
            position += bits
            if reader is not None:
                value, position = reader(data, position, end, limit)
                push(value)
                if reader is read_binary:
                    spans.append((position - 8 * len(value), len(value)))
    except CodecError as error:
        error.offset = position + (error.offset or 0)
        error.names = error.names or [state.path if state else ""]
        if error.offset >= end:
            error.reason, error.offset = TRUNCATED, end
        raise
    except IndexError:
        position = end + 1
    if position > end:
        raise CodecError(TRUNCATED, (last.path if last else "",), end)
    return stack[0], positions, spans, position


class ParentFrame(NamedTuple):
    """Where decoding continues after an element: alternative `chosen` of particle `place`, with `items` items
    before."""

    element: ElementType
    place: int
    chosen: int
    items: int
    path: str
    parent: ParentFrame | None


class Automaton:
    """The decoding automaton of documents, or of fragments if a code for their end is given.

    States are created when first reached and shared by all paths that lead to them, so their number is bounded by the
    declarations.
    """

    def __init__(self, roots: dict[str, Alternative], end: int | None = None, width: int = 0) -> None:
        """roots: root elements by code (a string of 0 and 1). end, width: code that ends a fragment."""
        self.roots = roots
        self.states: dict[tuple[ElementType, int, int, ParentFrame | None, str], DecoderState] = {}
        self.simple_elements: dict[SimpleType, ElementType] = {}
        self.ending = None if end is None else DecoderState("", lambda: iter((Transition(f"{end:0{width}b}"),)))
        self.start = DecoderState("", self.openings)

    def openings(self) -> Iterator[Transition]:
        """The transitions into the root elements."""
        for code, alternative in self.roots.items():
            yield self._open(code, (), alternative, None, alternative.name)

    def unfold(self) -> None:
        """Create all states now, so that decoding any message computes only a few steps."""
        todo, seen = [self.start], {id(self.start)}
        while todo:
            for transition in todo.pop().transitions:
                if transition.next is not None and id(transition.next) not in seen:
                    seen.add(id(transition.next))
                    todo.append(transition.next)

    def _open(
        self,
        code: str,
        actions: tuple[Action, ...],
        alternative: Alternative,
        parent: ParentFrame | None,
        path: str,
    ) -> Transition:
        element = alternative.kind
        if isinstance(element, SimpleType):
            element = self.simple_elements.setdefault(element, simple_element(element))
        assert element is not None
        if element.positioned:
            actions += ((alternative.name, START),)
        return Transition(code, actions, next=self._state(element, 0, 0, parent, path))

    def _state(
        self, element: ElementType, index: int, count: int, parent: ParentFrame | None, path: str
    ) -> DecoderState:
        key = element, index, count, parent, path
        if key not in self.states:
            self.states[key] = DecoderState(path, partial(self._transitions, *key))
        return self.states[key]

    def _transitions(
        self, element: ElementType, index: int, count: int, parent: ParentFrame | None, path: str
    ) -> Iterator[Transition]:
        productions = element.productions(index, count)
        width = len(productions).bit_length()
        for number, (place, alternative) in enumerate(productions):
            code = f"{number:0{width}b}"
            if alternative is None:
                actions, after = self._leave(element, index, count, parent)
                yield Transition(code, actions, next=after)
                if count and width == 1:
                    # The end of a full list in the form of encoders that do not count items. In all messages here the
                    # standard form is followed by another zero bit, so the two forms cannot be confused.
                    yield Transition("01", actions, next=after)
                continue
            if alternative.kind is None:
                yield Transition(code, refuse=f"{alternative.name} is not supported")
                continue
            particle = element.particles[place]
            items = count if place == index else 0
            chosen = particle.alternatives.index(alternative)
            frame = ParentFrame(element, place, chosen, items, path, parent)
            actions = self._absent(element, index, count, place)
            if element.cls is not None:
                actions += ((None, 0),) * chosen
            if particle.sort == ELEMENT:
                if items and items == particle.max_items:
                    yield Transition(code, refuse=f"more than {items} {alternative.name}")
                else:
                    yield self._open(code, actions, alternative, frame, f"{path}/{alternative.name}")
                continue
            assert isinstance(alternative.kind, SimpleType)
            yield Transition(code, actions, alternative.kind, self._state(element, place + 1, 0, parent, path))
            if particle.sort == TEXT:
                # The first choice after the escape is the end of the element: an empty value.
                escape = f"{len(productions):0{width}b}"
                if alternative.kind.empty is None:
                    yield Transition(escape + "000", refuse="an empty value")
                else:
                    more, after = self._leave(element, place + 1, 0, parent)
                    yield Transition(escape + "000", (*actions, (alternative.kind.empty, 0), *more), next=after)
                yield Transition(escape, refuse="a deviation from the schema (such as xsi:type or untyped content)")
        full = element.particles[index] if index < len(element.particles) else None
        if full is not None and not full.own_limit and count > 1 and count == full.max_items:
            # The escape after a full list: an encoder without a limit writes the next item as unexpected content.
            yield Transition(f"{len(productions):0{width}b}", refuse=f"more than {count} {full.alternatives[0].name}")

    def _leave(
        self, element: ElementType, index: int, count: int, parent: ParentFrame | None
    ) -> tuple[tuple[Action, ...], DecoderState | None]:
        """The actions at the end of an element, and the state after it."""
        actions = self._absent(element, index, count, len(element.particles))
        if element.cls is not None:
            actions += ((partial(tuple.__new__, element.cls), len(element.slots)),)
        if element.positioned:
            actions += ((None, STOP),)
        if parent is None:
            return actions, self.ending
        outer = parent.element
        particle = outer.particles[parent.place]
        if particle.max_items is None:
            if outer.cls is not None:
                actions += ((None, 0),) * (len(particle.alternatives) - 1 - parent.chosen)
            return actions, self._state(outer, parent.place + 1, 0, parent.parent, parent.path)
        return actions, self._state(outer, parent.place, parent.items + 1, parent.parent, parent.path)

    def _absent(self, element: ElementType, index: int, count: int, place: int) -> tuple[Action, ...]:
        """Close the list that was being read, and fill the slots of absent particles up to particle `place`."""
        actions: tuple[Action, ...] = ()
        for between in range(index, place):
            particle = element.particles[between]
            if between == index and count:
                actions += ((tuple, count),)
            elif particle.sort != REFUSED:
                actions += ((None if particle.max_items is None else (), 0),) * len(particle.alternatives)
        return actions
