import platform
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.wire import headers


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """Two versions of Debian's headers, each in two parts."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    for version in ("6.1.0-9", "6.1.0-56"):
        common, flavour = (tmp_path / f"linux-headers-{version}-{part}" for part in ("common", architecture))
        _write(common / "include/uapi/linux/ip.h", f"ip of {version}")
        _write(common / "arch/x86/include/asm/a.h", "common")
        _write(common / "Makefile", "common")
        _write(flavour / "include/generated/autoconf.h", "flavour")
        _write(flavour / "arch/x86/include/generated/a.h", "flavour")
        _write(flavour / "Makefile", "flavour")
    (tmp_path / "linux-headers-9-common").mkdir()  # of another machine's kernel: its other part is missing
    return tmp_path


def test_debians_parts_are_merged_newest_first(debian: Path, tmp_path: Path) -> None:
    view = headers.find(tmp_path / "cache", installed=debian, modules=tmp_path / "none")
    assert (view / "include/uapi/linux/ip.h").read_text() == "ip of 6.1.0-56"
    assert (view / "include/generated/autoconf.h").read_text() == "flavour"
    assert (view / "arch/x86/include/asm/a.h").read_text() == "common"
    assert (view / "arch/x86/include/generated/a.h").read_text() == "flavour"
    assert (view / "Makefile").read_text() == "flavour"
    assert headers.find(tmp_path / "cache", installed=debian, modules=tmp_path / "none") == view
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [view.name], "nothing half-made is left"


def test_the_running_kernels_own_headers_come_first(debian: Path, tmp_path: Path) -> None:
    own = tmp_path / "modules" / platform.release() / "build"
    (own / "include").mkdir(parents=True)
    assert headers.find(tmp_path / "cache", installed=debian, modules=tmp_path / "modules") == own


def test_without_headers_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="apt-get install linux-headers-"):
        headers.find(tmp_path / "cache", installed=tmp_path, modules=tmp_path)


def test_a_cache_that_cannot_be_written_is_named(debian: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="file/cache"):
        headers.find(tmp_path / "file" / "cache", installed=debian, modules=tmp_path / "none")
