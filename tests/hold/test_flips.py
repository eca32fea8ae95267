"""Some bits of messages, OCSP responses, CRLs and trusted certificates: no 500, nothing wrong accepted."""

from tests.hold.short import held


def test_flipped_bits_crash_nothing_and_pass_nowhere() -> None:
    held("flips")
