"""The demo itself: four days of traffic, learning after each but the last, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.demo import days, driver, workload
from gateway.demo.days import Day, Timings
from gateway.demo.driver import Application, Call
from gateway.demo.show import Screen
from gateway.demo.stack import Stack, Task
from gateway.demo.workload import Message

PROJECT = "bank-support"
DAYS = 4
CONCURRENCY = 64
# A small model's time for a short answer; the figures are made up, and said to be.
TEACHER_MEDIAN = 0.28
TEACHER_SPREAD = 0.35
_QUIET_CALLS, _QUIET_CONCURRENCY = 40, 6
_ALONE = 60  # handled calls a day sent again, one by one
_SHOWN_CHARS = range(35, 90)


@dataclass(frozen=True, slots=True)
class Options:
    """`target` is the agreement to prove; `seed` fixes the messages, the teacher's answers and its times."""

    seed: int = 7
    calls_per_day: int = 1_600
    target: float = 0.95


def play(options: Options, folder: Path, screen: Screen) -> list[str]:
    """Run the demo in `folder`; what did not hold, a sentence each.

    Raises DemoError, openai.APIError, HTTPException or OSError.
    """
    messages = workload.messages(DAYS * options.calls_per_day, options.seed)
    task = Task(
        project=PROJECT,
        system_prompt=workload.system_prompt(),
        labels={message.text: message.label for message in messages},
        target=options.target,
        median=TEACHER_MEDIAN,
        spread=TEACHER_SPREAD,
    )
    _introduce(options, screen)
    with Stack(task, folder, on_command=screen.command) as stack:
        application = stack.application(CONCURRENCY)
        seen: list[Day] = []
        calls: list[Call] = []
        forwarded = 0
        for number in range(1, DAYS + 1):
            start = (number - 1) * options.calls_per_day
            day, calls = _one_day(number, messages[start : start + options.calls_per_day], application, screen)
            seen.append(day)
            forwarded += sum(call.forwarded for call in calls)
            if number < DAYS:
                _learn(stack, forwarded, screen)
        screen.table(seen)
        _show_two_calls(calls, application, screen)
        found = days.faults(seen, options.target)
        if any(day.failures for day in seen):
            screen.say(stack.gateway_log)
    return found


def _introduce(options: Options, screen: Screen) -> None:
    screen.heading("tracer demo: a bank's support desk asks an LLM for the intent of every message")
    screen.say(
        f"SYNTHETIC: {DAYS * options.calls_per_day:,} messages from a seeded grammar ({len(workload.bank().labels)} "
        "labels; typing errors, ambiguous and off-topic messages), and a scripted teacher with made-up answers and "
        f"latency (median {TEACHER_MEDIAN * 1e3:.0f} ms)."
    )
    screen.say(
        f"REAL: the gateway (`tracer serve`), the official openai client with {CONCURRENCY} calls in flight, the trace "
        "store, `tracer fit` and `tracer update`, and every figure measured below."
    )


def _one_day(
    number: int, messages: Sequence[Message], application: Application, screen: Screen
) -> tuple[Day, list[Call]]:
    """Most of the day's calls under load, the last few in quiet, and then some handled ones again to time them."""
    quiet = min(_QUIET_CALLS, len(messages) // 4)
    with screen.day(number, len(messages)) as on_call:
        busy = driver.drive(application, messages[:-quiet], on_call)
        calm = driver.drive(replace(application, concurrency=_QUIET_CONCURRENCY), messages[-quiet:], on_call)
    calls = busy + calm
    handled = [call.message for call in calls if call.handled][:_ALONE]
    again = driver.drive(replace(application, concurrency=1), handled, lambda _: None)
    timings = Timings(
        forwarded=tuple(call.seconds for call in calm if call.forwarded),
        alone=tuple(call.seconds for call in again if call.handled),
        bare=tuple(driver.bare_seconds(application, handled)),
    )
    return days.summarise(number, calls, application.system_prompt, timings), calls


def _learn(stack: Stack, forwarded: int, screen: Screen) -> None:
    with screen.working("learning"):
        learned = stack.learn(forwarded)
    screen.learned(learned)


def _show_two_calls(calls: Sequence[Call], application: Application, screen: Screen) -> None:
    for title, shown in (
        ("A handled call in full: answered by the gateway itself", [call for call in calls if call.handled]),
        ("A deferred call in full: the teacher's own answer", [call for call in calls if call.lane == "teacher"]),
    ):
        fitting = [call for call in shown if len(call.message.text) in _SHOWN_CHARS] or shown
        if fitting:
            screen.exchange(title, driver.exchange(application, fitting[0].message.text))
