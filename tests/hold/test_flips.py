"""Some bits of messages, OCSP responses, CRLs and trusted certificates: no 500, nothing wrong accepted."""

from tests.hold.short import held


def test_flips_of_bits_cause_no_crash_and_are_never_accepted() -> None:
    held("flips")
