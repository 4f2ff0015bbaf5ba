"""pip.conf's way to the packages, for uv, which does not read it."""

import configparser
import os
import sys
from pathlib import Path

from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_bounded

NAMES = (
    *("index_url", "extra_index_url", "no_index", "find_links", "trusted_host"),
    *("cert", "client_cert", "proxy", "cache_dir", "timeout", "retries", "keyring_provider"),
)
MAX_BYTES = 1 << 20


def files() -> list[str]:
    """Where pip looks, later ones count more."""
    get, home = os.environ.get, os.path.expanduser
    named = get("PIP_CONFIG_FILE") or ""
    if named == os.devnull:
        return []
    shared = [
        f"{folder}/pip/pip.conf" for folder in (get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    ]
    return [
        *shared,
        "/etc/pip.conf",
        home("~/.pip/pip.conf"),
        home("~/Library/Application Support/pip/pip.conf"),
        (get("XDG_CONFIG_HOME") or home("~/.config")) + "/pip/pip.conf",
        sys.prefix + "/pip.conf",
        named,
    ]


def settings() -> dict[str, str]:
    """Return the settings of all files, as name: value.

    Raise InstallError for a file that pip refuses: without it, packages would come from elsewhere.
    """
    conf = configparser.RawConfigParser()
    for file in filter(os.path.exists, files()):
        add(conf, Path(file))
    found = {}
    for section in ("global", "download", "install"):
        for key, value in conf.items(section) if conf.has_section(section) else []:
            found[key.replace("-", "_")] = " ".join(value.split())
    return found


def add(conf: configparser.RawConfigParser, file: Path) -> None:
    """Add the settings of one file; its lines are not shown, which may hold passwords."""
    content = b""
    try:
        content = read_bounded(file, MAX_BYTES)
        conf.read_string(content.decode("utf-8-sig"), str(file))
    except UserError as error:
        why = str(error)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        why = f"{file}, line {line}: not UTF-8 text; save it as UTF-8"
    except configparser.ParsingError as error:  # with or without a line of its own
        line = getattr(error, "lineno", None) or error.errors[0][0]
        why = f"{file}, line {line}: neither a [section] nor NAME = VALUE"
    except (configparser.DuplicateOptionError, configparser.DuplicateSectionError) as error:
        why = f"{file}, line {error.lineno}: the same setting or section a second time"
    else:
        return
    fix = "fix it, or set PIP_CONFIG_FILE=/dev/null to use no pip.conf"
    raise InstallError(ExitCode.BAD_INPUT, "pip's configuration cannot be read", why, fix)
