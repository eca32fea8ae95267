"""ccp expiry: contracts that end soon, by provider."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_table, with_store

if TYPE_CHECKING:
    from ccp.server.domain.statistics import ExpiryForecast
    from ccp.server.storage import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(expiry)


def expiry(
    days: Annotated[
        list[int], typer.Option(min=1, max=3650, help="Days from now; may be given several times. Default: 7, 30, 90.")
    ] = [],  # noqa: B006
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the contracts that end soon, by provider.

    A contract counts when its first variant ends within the days; longer windows include shorter ones.
    """
    from ccp.server.domain.statistics import EXPIRY_DAYS
    from ccp.server.storage.queries.statistics import expiry_forecast

    async def count(store: Store) -> ExpiryForecast:
        return await store.read(expiry_forecast(datetime.now(UTC), sorted(set(days)) or EXPIRY_DAYS))

    forecast = with_store(config, count)
    if as_json:
        print_json(forecast.members())
        return
    rows = [[each.provider, *map(str, each.contracts)] for each in forecast.providers]
    rows.append(["total", *map(str, forecast.totals)])
    print_table(["provider", *(f"{each} days" for each in forecast.days)], rows)
