import pytest
from tests.world import *
from tests import world
@pytest.mark.parametrize("edition", ["iso2","iso20","ed448"])
def test_it(pool, edition):
    car = pool.car(edition)
    c = pool.publish(car)
    items = pool.ask(car)
    assert car.install(world.octets_of(items[0]), world.SESSION, world.AT)[0] == c.emaid
