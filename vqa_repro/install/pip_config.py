"""pip.conf's way to the packages, for uv: PIP_NAME=value, one a line, where no variable says it.

Run as a file by bootstrap.sh, before there is an environment.
"""

import configparser
import contextlib
import os
import sys

NAMES = (
    *("index_url", "extra_index_url", "no_index", "find_links", "trusted_host"),
    *("cert", "client_cert", "proxy", "cache_dir", "timeout", "retries", "keyring_provider"),
)


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
    conf = configparser.RawConfigParser(strict=False)
    for file in files():
        with contextlib.suppress(configparser.Error, UnicodeDecodeError):
            conf.read(file, encoding="utf-8")
    found = {}
    for section in ("global", "download", "install"):
        for key, value in conf.items(section) if conf.has_section(section) else []:
            found[key.replace("-", "_")] = " ".join(value.split())
    return found


if __name__ == "__main__":
    found = settings()
    for name in NAMES:
        if found.get(name) and f"PIP_{name.upper()}" not in os.environ:
            print(f"PIP_{name.upper()}={found[name]}")
