"""Ray and inline are twins."""

from pathlib import Path

from tests.helpers import TINY, WINDROW, Killable, contents, windrow, words


def test_a_run_may_change_between_ray_and_inline(tiny_images: Path, tmp_path: Path) -> None:
    """Begun in one way and killed, continued in the other: the same bytes as a run that nothing happened to."""
    config = tmp_path / "tiny.yaml"
    config.write_text(f"source: {{type: images, path: {tiny_images}}}\nselect: {{strategy: balanced, fraction: 0.5}}\n")
    settings = words({**TINY, "rounds": 1, "train.ranks": 1, "train.epochs": 2, "train.evaluate_every": "null"})

    def command(name: str, *options: str) -> list[str]:
        return [WINDROW, "run", str(config), f"run_dir={tmp_path}/{name}", *settings, *options]

    whole = windrow(*command("whole", "--inline")[1:])
    assert whole.returncode == 0, whole.stderr
    for name, begin, go_on in (("inline first", ["--inline"], []), ("ray first", [], ["--inline"])):
        running = Killable(command(name, *begin), tmp_path / "log")
        assert running.wait_for("round-0/train …"), (tmp_path / "log").read_text()
        running.kill()
        assert not (tmp_path / name / "round-0" / "train" / "manifest.json").exists()
        done = windrow(*command(name, *go_on)[1:])
        assert done.returncode == 0, done.stderr
        assert contents(tmp_path / name) == contents(tmp_path / "whole")
