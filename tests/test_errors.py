"""What a command says at its end where the system refuses something."""

import resource
import subprocess
import sys

import pytest
from locksmith import errors


@pytest.mark.parametrize("error, said", [
    (OSError(28, "No space left on device", "results/x.json"),
     "results/x.json: No space left on device"),
    (OSError(18, "Invalid cross-device link", "a", None, "b"), "a to b: Invalid cross-device link"),
    (OSError("odd"), "a file: odd"),
    (PermissionError(13, "Permission denied", "build"), "build: Permission denied"),
    (MemoryError(), "memory ran out: less is free than it needs"),
    (MemoryError("sampling needs 9 GiB"), "memory ran out: sampling needs 9 GiB")])
def test_what_the_system_refuses_is_a_sentence(error, said, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit) as ended:
        errors.run(main)
    assert ended.value.code == 1 and capsys.readouterr().err == f"error: {said}\n"


def test_a_file_that_may_not_grow_is_named_and_what_was_there_stays(tmp_path):
    (tmp_path / "a.json").write_text("old")
    code = ("from locksmith import errors, results\n"
            "errors.run(lambda: results.save('a.json', 'new' * 10_000))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=False, preexec_fn=lambda: resource.setrlimit(
                              resource.RLIMIT_FSIZE, (4096, 4096)))
    assert (done.returncode, done.stderr) == (1, "error: a.json: File too large\n")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.json", "old")]
