"""Which variables reach the programs of an installation, and how packages are reached.

pip and uv are given the same way to the packages, whichever of the two it was set for; variables
win over files. Whatever would change what is installed or imported is set aside.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.http_client import QUOTING
from vqa_repro.install.redact import shown
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.files import read_bounded

SET_ASIDE = re.compile(
    "PYTHON(HOME|PATH|STARTUP|INSPECT|OPTIMIZE|EXECUTABLE|PLATLIBDIR|SAFEPATH|USERBASE|WARNINGS|DEBUG|VERBOSE|DEVMODE)"
    "|VIRTUAL_ENV|__PYVENV_LAUNCHER__|PIP_.*|UV_.*"
)
KEPT = re.compile(
    "PIP_.*INDEX.*|PIP_FIND_LINKS|PIP_TRUSTED_HOST|PIP_.*CERT|PIP_PROXY|PIP_CACHE_DIR"
    "|PIP_.*TIMEOUT|PIP_RETRIES|PIP_KEYRING_PROVIDER|UV_.*INDEX.*|UV_FIND_LINKS|UV_INSECURE_HOST"
    "|UV_.*CERTS|UV_NATIVE_TLS|UV_CACHE_DIR|UV_HTTP_.*|UV_OFFLINE|UV_KEYRING_PROVIDER"
    "|UV_CONFIG_FILE|UV_CONCURRENT_.*|UV_LINK_MODE|UV_PYTHON_INSTALL_MIRROR"
    "|UV_PYTHON_DOWNLOADS_JSON_URL"
)
MAX_TOML = 1 << 20  # bytes
SILENT = ("PIP_CONFIG_FILE", "PIP_DISABLE_PIP_VERSION_CHECK")  # obeyed, not worth a word


def clean(environ: MutableMapping[str, str]) -> tuple[list[str], list[str]]:
    """Remove what would change the result; return the names (used, set aside)."""
    used, aside = [], []
    for name in sorted(environ):
        if not environ[name] or name in SILENT or not SET_ASIDE.fullmatch(name):
            continue
        if KEPT.fullmatch(name):
            used.append(name)
        else:
            aside.append(name)
            del environ[name]
    return used, aside


def pip_conf(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Return what pip.conf says and no variable does, as PIP_NAME: value."""
    from vqa_repro.install import pip_config

    found = pip_config.settings()
    values = {f"PIP_{name.upper()}": found.get(name, "") for name in pip_config.NAMES}
    return {name: value for name, value in values.items() if value and name not in environ}


def uv_index(environ: MutableMapping[str, str]) -> str:
    """Return the default index that uv.toml names, "" without one."""
    get, home = environ.get, os.path.expanduser
    config = get("XDG_CONFIG_HOME") or home("~/.config")
    shared = (get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    files = [f"{folder}/uv/uv.toml" for folder in (config, *shared, "/etc")]
    for file in [get("UV_CONFIG_FILE") or ""] if get("UV_CONFIG_FILE") else files:
        values = read_toml(Path(file))
        for index in values.get("index", []):
            if isinstance(index, dict) and index.get("default") is True:
                return str(index.get("url", ""))
        pip = values.get("pip")
        found = values.get("index-url") or (isinstance(pip, dict) and pip.get("index-url"))
        if isinstance(found, str):
            return found
    return ""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file, {} without one; raise InstallError if uv refuses it."""
    if not path.exists():
        return {}
    for name in ("tomllib", "pip._vendor.tomli"):
        try:
            reader = importlib.import_module(name)
            text = read_bounded(path, MAX_TOML).decode()
            values: dict[str, Any] = reader.loads(text)
            return values
        except ImportError:
            continue
        except UserError as error:
            why = str(error)
        except ValueError as error:  # with the line, and no part of the content
            why = f"{path}: {error}"
        raise InstallError(ExitCode.BAD_INPUT, "uv's configuration cannot be read", why, "fix it")
    return {}


def existing(path: Path) -> Path:
    """Return the path, or its nearest folder that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def is_writable(path: Path) -> bool:
    return os.access(existing(path), os.W_OK)


def same_disk(first: Path, second: Path) -> bool:
    return existing(first).stat().st_dev == existing(second).stat().st_dev


def cache_dir(environ: MutableMapping[str, str], state: Path) -> Path:
    """Return uv's cache; in the project where the usual folder is closed to us."""
    named = environ.get("UV_CACHE_DIR") or os.path.join(
        environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or state, ".cache"), "uv"
    )
    folder = Path(os.path.abspath(named))
    return folder if is_writable(folder) else state / "cache"


def _links(links: Iterable[str]) -> list[str]:
    """Return the addresses and the absolute folders of ``links``."""
    found = [link if "://" in link else os.path.abspath(link) for link in links]
    # uv stops at a folder that does not exist
    return [link for link in found if "://" in link or os.path.isdir(link)]


def package_environment(
    environ: dict[str, str],
    conf: dict[str, str],
    state: Path,
    venv: Path,
    *,
    offline: bool = False,
    bundle: bool = False,
    pages: tuple[str, ...] = (),
    system_certificates: bool = False,
) -> dict[str, str]:
    """Return the environment of pip and uv, in which variables say everything.

    ``pages`` are addresses of further wheels; with ``bundle``, only those of the open bundle count.
    """
    result = {**environ, **conf}

    def offer(name: str, value: str) -> None:
        if value and not result.get(name):
            result[name] = value

    result |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result["PIP_NO_INPUT"] = "1"
    links = _links((*result.get("PIP_FIND_LINKS", "").split(), *pages))
    _share_indexes(result, offer)
    offer("UV_NO_INDEX", result.get("PIP_NO_INDEX", ""))
    if links:
        result["UV_FIND_LINKS"] = ",".join(filter(None, [result.get("UV_FIND_LINKS", ""), *links]))
        result["PIP_FIND_LINKS"] = " ".join(links)
    offer("UV_INSECURE_HOST", result.get("PIP_TRUSTED_HOST", ""))
    offer("SSL_CERT_FILE", result.get("PIP_CERT", ""))
    if not result.get("https_proxy"):
        offer("HTTPS_PROXY", result.get("PIP_PROXY", ""))
    offer("UV_HTTP_TIMEOUT", "300")
    offer("UV_HTTP_RETRIES", "10")
    cache = cache_dir(result, state)
    result |= {"UV_CACHE_DIR": str(cache), "UV_NO_BUILD": "1", "UV_NO_PROGRESS": "1"}
    result["UV_PYTHON_DOWNLOADS"] = "never"
    if not same_disk(cache, venv):
        offer("UV_LINK_MODE", "copy")
    if system_certificates:
        result["UV_SYSTEM_CERTS"] = "1"
    if offline:
        result |= {"UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    if bundle:
        indexes = re.compile(r"(PIP|UV)_((EXTRA|DEFAULT)_)?INDEX")
        result = {name: value for name, value in result.items() if not indexes.match(name)}
        # A relative path has neither the spaces at which pip cuts nor the commas at which uv does.
        wheels = f"{state.name}/bundle/wheels"
        result |= {"UV_NO_INDEX": "1", "UV_FIND_LINKS": wheels, "PIP_FIND_LINKS": wheels}
    result["TMPDIR"] = str(scratch(state))  # /tmp is often too small for what pip puts there
    return result


def _share_indexes(result: dict[str, str], offer: Callable[[str, str], None]) -> None:
    """Give uv the indexes of pip, and pip those of uv."""
    if not result.get("UV_INDEX_URL"):
        offer("UV_DEFAULT_INDEX", result.get("PIP_INDEX_URL", ""))
    if not result.get("PIP_INDEX_URL"):
        index = result.get("UV_DEFAULT_INDEX") or result.get("UV_INDEX_URL") or uv_index(result)
        offer("PIP_INDEX_URL", index.partition("=")[2] if re.match(r"\w+=", index) else index)
    if not result.get("UV_INDEX"):
        offer("UV_EXTRA_INDEX_URL", result.get("PIP_EXTRA_INDEX_URL", ""))
    offer("PIP_EXTRA_INDEX_URL", result.get("UV_EXTRA_INDEX_URL", ""))
    if result.get("UV_EXTRA_INDEX_URL"):
        # As pip does; by default uv sees no more of a package than the first index has.
        offer("UV_INDEX_STRATEGY", "unsafe-best-match")  # safe: the locks have hashes


def refuse_unreadable_addresses(environ: dict[str, str]) -> None:
    """Raise InstallError for an address in ``package_environment`` whose host is not certain.

    pip and uv would end with a traceback that shows part of the password.
    """
    for name, value in environ.items():
        if not re.fullmatch(r"(PIP|UV)_\w*(INDEX|LINKS)\w*|https?_proxy", name, re.IGNORECASE):
            continue
        for word in re.split(r"[\s,]+", value):
            url = re.sub(r"^\w+=", "", word)
            if "://" in url and not is_readable(url):
                where = name if name in os.environ else "pip.conf or uv.toml"
                raise InstallError(
                    ExitCode.BAD_INPUT, f"{where} is not a usable address", shown(url), QUOTING
                )


def is_readable(url: str) -> bool:
    """Return whether it is certain which part of ``url`` is the host."""
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.port != 0 and not ("@" in parts.netloc and "@" in parts.path)
    except ValueError:
        return False


def scratch(state: Path) -> Path:
    """Return a folder for temporary files that can be written."""
    folder = state / "tmp"
    if folder.exists() and not os.access(folder, os.W_OK):  # left by another user
        folder = state / f"tmp-{os.getpid()}"
    return folder


def default_index() -> str:
    """Return pip's default index; "" for a Python without pip."""
    try:
        known = importlib.import_module("pip._internal.models.index")
    except ImportError:
        return ""
    return str(getattr(getattr(known, "PyPI", None), "simple_url", ""))


def socks_proxy() -> str:
    """Return the name of the variable with a SOCKS proxy if pip of this Python cannot use one."""
    for scheme, url in urllib.request.getproxies().items():
        socks = scheme in ("https", "all") and url.startswith("socks")
        if socks and importlib.util.find_spec("socks") is None:
            return f"{scheme}_proxy"
    return ""
