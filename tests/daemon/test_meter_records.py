"""Reading meter files: as they grow and as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flx_api.daemon.meter_records import CountEvent, MeterFollower, StreamCount, read_invocations

if TYPE_CHECKING:
    from pathlib import Path

START = '{"kind":"start","role":"extractor","plugin":"tap","ts_us":1,"pid":9,"purpose":"sync"}\n'
COUNT = '{"kind":"count","ts_us":%d,"streams":{"s":{"records":%d,"bytes":10}}}\n'
END = (
    '{"kind":"end","ts_us":9,"exit_code":-15,"cpu_s":0.5,"max_rss_kib":7,"snapshot":{"streams":{"s":{"records":3}}}}\n'
)


def test_the_follower_yields_each_count_once(tmp_path: Path) -> None:
    """Only whole lines count, each one once, files in any order of arrival."""
    follower = MeterFollower(tmp_path / "meter")
    assert follower.poll() == []  # the folder is not there yet
    (tmp_path / "meter").mkdir()
    path = tmp_path / "meter" / "000-extractor-tap.jsonl"
    (tmp_path / "meter" / ".000").touch()
    (tmp_path / "meter" / "000-extractor-tap.keys").write_text('["s",[1]]\n')
    first, second = COUNT % (2, 1), COUNT % (3, 2)
    path.write_text(START + first + second[:20])
    assert follower.poll() == [CountEvent(2, 0, "extractor", "tap", {"s": StreamCount(1, 10)})]
    assert follower.poll() == []
    with path.open("a") as file:
        file.write(second[20:] + END)
    assert [event.streams["s"].records for event in follower.poll()] == [2]


def test_invocations_are_folded(tmp_path: Path) -> None:
    """The last count, the end and the snapshot; a torn line and an unknown kind cost nothing else."""
    path = tmp_path / "000-extractor-tap.jsonl"
    path.write_text(
        START
        + COUNT % (2, 1)
        + '{"kind":"later","x":1}\n'
        + COUNT % (3, 2)
        + '{"kind":"inputs","missing":["a"]}\n'
        + END
    )
    (tmp_path / "001-loader-t.jsonl").write_text(START.replace("extractor", "loader") + '{"kind":"end","ts')
    (tmp_path / "002-loader-empty.jsonl").touch()
    whole, vanished = read_invocations(tmp_path)
    assert (whole.number, whole.exit_code, whole.ended_us, whole.max_rss_kib) == (0, -15, 9, 7)
    assert whole.counts == {"s": StreamCount(2, 10)}
    assert whole.snapshot is not None
    assert whole.snapshot.streams["s"].records == 3
    assert whole.missing_inputs == ("a",)
    assert (vanished.role, vanished.ended_us, vanished.snapshot) == ("loader", None, None)


def test_no_folder_is_no_invocation(tmp_path: Path) -> None:
    """A run that was not metered."""
    assert read_invocations(tmp_path / "absent") == ()
