"""What watches a control plane: numbers by the minute, recent inputs, and exporters that show them elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterable, Optional, Sequence

from cadenza.base.clock import Clock
from cadenza.base.config import Config
from cadenza.control import stats
from cadenza.control.access import Access
from cadenza.control.calls import Calls
from cadenza.control.history import History
from cadenza.control.tally import Tally
from cadenza.observe.log import Log
from cadenza.observe.metrics import Metrics
from cadenza.protocol.nodes import NodeReport, Usage
from cadenza.storage.db import Database
from cadenza.storage.recent import RecentStore
from cadenza.storage.series import SeriesStore

if TYPE_CHECKING:  # the libraries behind them are loaded where they are wanted
    from cadenza.observe.otel import Exporter
    from cadenza.observe.prometheus import Endpoint

DAY_S = 24 * 3600.0

_log = Log("cadenza.control.observing")


class Observing:
    """One for a control plane: ``start``, ``tick`` about once a second, ``sweep`` now and then, ``close``."""

    def __init__(
        self,
        config: Config,
        db: Database,
        clock: Clock,
        calls: Calls,
        access: Access,
        metrics: Metrics,
        app: Callable[[str, str], stats.App],
        function: Callable[[str], stats.Function],
        variants: Callable[[str], Iterable[str]],
        versions: Callable[[str], int] = lambda app_id: 0,
    ) -> None:
        """As `stats.Reader`; ``metrics`` are the server's own counters."""
        self._config = config
        self._clock = clock
        self._cluster = calls.loop.cluster
        self._series = SeriesStore(db)
        self._recent = RecentStore(db)
        self.tally = Tally(self._series, clock, self._cluster, lambda app_id: app(app_id, "").environment)
        self.history = History(self._recent, self.tally, clock)
        self.reader = stats.Reader(
            self.tally, self._series, self.history, self._cluster, clock, access, app, function, variants, versions
        )
        calls.watch = self.history.note
        self._endpoint: Optional[Endpoint] = None
        self._exporter: Optional[Exporter] = None
        self._metrics = metrics

    async def start(self) -> None:
        """Open what the configuration asks for. InvalidError, with the remedy, when that cannot be had."""
        config = self._config
        if config.metrics_address:
            from cadenza.observe.prometheus import Endpoint

            self._endpoint = Endpoint(self._totals, self._metrics.read, config.metrics_prefix)
            await self._endpoint.listen(config.metrics_address)
        if config.otel_endpoint:
            from cadenza.observe.otel import Exporter

            self._exporter = Exporter(
                config.otel_endpoint, config.metrics_prefix, self._totals, self._clock.now, config.otel_traces
            )
            if config.otel_traces:
                self.history.ended = self._exporter.ended

    def _totals(self) -> list[Any]:
        self.history.drain()
        return self.tally.totals()

    def report(self, report: NodeReport) -> None:
        """A node's state, before the cluster's owner hears of it."""
        self.tally.report(report)

    def usage(self, samples: Sequence[Usage]) -> None:
        """What containers use."""
        self.tally.usage(samples)

    async def tick(self) -> None:
        """Count what ended, take samples, keep what is due, export what is due."""
        self.tally.sample()
        await self.history.write()
        await self.tally.write()
        if self._exporter is not None:
            self._exporter.tick()

    async def sweep(self) -> None:
        """Let go of what is too old."""
        now = self._clock.now()
        await self._series.retain(now)
        await self._recent.retain(now, self._config.log_retention_days * DAY_S)
        self.history.forget(self._cluster.functions.__contains__)

    async def close(self) -> None:
        """Keep everything; the last export is waited for, for a moment. The database is still open."""
        if self._endpoint is not None:
            await self._endpoint.close()
        try:
            await self.history.write(everything=True)
            await self.tally.write(everything=True)
        except Exception as error:  # the end goes on
            _log.error("the last statistics are lost", error=str(error))
        if self._exporter is not None:
            await self._exporter.close()

    def handlers(self) -> dict[str, Any]:
        """Rows of the table of methods."""
        return stats.handlers(self.reader)
