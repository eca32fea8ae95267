"""A short mix of hostile and honest load: no 500, and every container within its bound."""

from tests.hold.short import held


def test_soak_containers_stay_within_their_bounds() -> None:
    held("soak")
