"""A short mix of hostile and honest load: no 500, and every container within its bound."""

from tests.hold.short import held


def test_containers_keep_their_bounds_under_hostile_load() -> None:
    held("soak")
