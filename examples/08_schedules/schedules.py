"""Number eight: functions that run by themselves, here while the program runs, or for good once it is deployed.

Run it with ``cadenza run examples/08_schedules/schedules.py``; then ``cadenza deploy`` it and look at
``cadenza schedule list``.
"""

import time

import cadenza

app = cadenza.App("schedules-example")


@app.function(schedule=cadenza.Period(seconds=1))
def tick() -> None:
    print("tick")


@app.function(schedule=cadenza.Cron("0 6 * * *", timezone="Europe/Vienna"))
def every_morning() -> None:
    print("good morning, Vienna")


@app.local_entrypoint()
def main(seconds: float = 3.5) -> None:
    time.sleep(seconds)
    print("that was it")
