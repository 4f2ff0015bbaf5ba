"""Answer bootstrap.sh in one line whether this Python can make an environment.

    PYTHON -I probe.py MACHINE

Prints "ok|version|path|tools", or "no|why". Any Python runs it, also Python 2.
"""

import sys


def verdict(machine):  # type: ignore[no-untyped-def]
    """Return the words of the answer; ``machine`` is the processor as uname -m says."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 10) <= sys.version_info[:2] <= (3, 15):
        return "no", version + ", and 3.10 to 3.15 is needed"
    import importlib.util
    import platform
    import sysconfig

    if sys.implementation.name != "cpython":
        return "no", "not CPython but " + sys.implementation.name
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "no", version + " without the GIL, for which there are too few packages"
    if sys.maxsize < 2**32 or platform.machine() != machine:
        return "no", version + " for another processor: " + platform.platform()
    for name in ("bz2", "ctypes", "lzma", "ssl", "zlib"):
        try:
            __import__(name)
        except ImportError:
            return "no", version + ", built without " + name
    tools = [name for name in ("pip", "ensurepip") if importlib.util.find_spec(name)]
    base = getattr(sys, "_base_executable", None) or sys.executable
    return "ok", version, base, " ".join(tools)


if __name__ == "__main__":
    print("|".join(verdict(sys.argv[1])))  # type: ignore[no-untyped-call]
