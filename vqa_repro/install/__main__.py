"""The stages of ./bootstrap.sh, which finds a Python and hands over to this.

The code runs in the Python that environments are made of, or in another one where none is fit.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from vqa_repro.install import console, processes, settings
from vqa_repro.install.console import say
from vqa_repro.install.environment import Environment, State
from vqa_repro.install.errors import ERRNO_CODES, ExitCode, InstallError
from vqa_repro.install.options import PROJECT, STAGES, STATE, parse, program
from vqa_repro.install.session import CHILD, Session, known_build
from vqa_repro.utils.errors import UserError, check_umask
from vqa_repro.utils.tunnel import tunnel_lines

WHY_NO_CHECKPOINT = {
    ExitCode.NO_SOURCE: "no source had it",
    ExitCode.CHECKPOINT_MISMATCH: "only wrong bytes",
    ExitCode.CHECKPOINT_BUSY: "busy",
    ExitCode.CHECKPOINT_DISK: "no space for it",
}


class Stages:
    """The stages of one call."""

    def __init__(self, session: Session) -> None:
        self.session, self.options = session, session.options
        locks = [session.lock, PROJECT / "wordnet.lock"]  # the second without its dependencies
        self.environment = Environment(session, self.options.venv, locks)

    def run(self) -> int:
        options = self.options
        if options.stop:
            from vqa_repro.install import jupyter

            jupyter.stop(self.session)
            return 0
        if self.environment.recover():
            self.session.build = known_build(options)
            self.environment.locks[0] = self.session.lock
        if options.verb == "all":
            stages: tuple[str, ...] = STAGES
        elif options.verb == "bundle":
            stages = ("checkpoint", "bundle")
        elif options.verb in ("check", "env", "checkpoint"):
            stages = (options.verb,)
        else:
            stages = ("env", options.verb)
        for stage in stages:
            if stage not in options.skip:
                getattr(self, stage)()
        self.session.close_bundle()
        if options.verb == "env" or (options.verb == "all" and "train" in options.skip):
            say(f"next: {options.command('train')}")
        return 0

    # ------------------------------------------------------------ check, env

    def check(self) -> None:
        from vqa_repro.install.checks import Checks

        say("check: is this machine suitable?")
        self.session.pip_conf()
        code = Checks(self.session, self.environment).all()
        self.session.checked = True
        if code:
            same, skip = self.options.again(), self.options.again("--skip", "check")
            commands = f"{same} (or {skip}"
            raise InstallError(
                code,
                "this machine is not suitable yet",
                "see each problem above",
                f"fix them, then {commands}, if you know better)",
            )

    def env(self) -> None:
        state = self.environment.state()
        if state is State.READY and self.session.build:  # none: no build runs the cards
            say(f"env: up to date ({self.environment.folder})")
            return
        if state is State.UNUSABLE and self.options.verb != "env":
            raise InstallError(
                ExitCode.BAD_INPUT,
                f"{self.environment.folder} cannot be used here, and is left as it is",
                self.environment.difference,
                f"or, to make it again: {self.options.command('env')}",
            )
        if not self.session.checked and "check" not in self.options.skip:
            self.check()
        self.session.need_base()
        say(f"env: {self.environment.folder}, Python {self.session.version}")
        if state is State.UNUSABLE:
            say(f"  the old one stays until the new one is whole: {self.environment.difference}")
        if not self.session.checked:  # the lock depends on the cards
            from vqa_repro.install.checks import Checks

            checks = Checks(self.session, self.environment)
            checks.gpu()
            if checks.code:
                next_ = f"fix that, then {self.options.command('env')}"
                raise InstallError(checks.code, "nothing is installed", "see above", next_)
        if self.options.dry_run:
            from vqa_repro.install.installer import Installer

            Installer(self.session, self.environment).choose()
            say("  would install what the *.lock files name, wheels only, hashes required")
            return
        self.make(self.environment)

    def make(self, environment: Environment) -> None:
        import time

        began = time.monotonic()
        environment.make()
        if self.session.fresh:
            say(f"  done in {time.monotonic() - began:.0f} s")

    # ------------------------------------------------------------ checkpoint, bundle

    def checkpoint(self) -> None:
        say("checkpoint: VGG-19")
        if self.options.dry_run:
            say("  would run: python checkpoints_setup.py vgg19")
            return
        ready = self.environment.state() is State.READY
        python = str(self.environment.python) if ready else self.session.need_base()
        command = [python, str(PROJECT / "checkpoints_setup.py"), "vgg19"]
        bundle = self.options.bundle
        if bundle and (self.session.opened or not has_all_of(bundle, command)):
            with self.session.locked():  # to the end: another run would remove the opened bundle
                self.session.open_bundle()
                folder = STATE / "bundle/checkpoints"
                command += [path.name for path in sorted(folder.glob("*.pth"))]
                command += ["--from", str(folder), "--offline"]
                code = processes.attached(command, dict(os.environ), note=CHILD)
        else:
            command += ["--offline"] if self.options.offline else []
            code = processes.attached(command, dict(os.environ))
        later = "python checkpoints_setup.py vgg19 [--from FILE|DIR|URL]"
        if code in WHY_NO_CHECKPOINT and self.options.verb in ("all", "bundle"):
            self.session.without.append(f"checkpoint: no VGG-19, {WHY_NO_CHECKPOINT[code]}")  # type: ignore[index]
            say(f"  {console.color('yellow', 'continuing without it')}; later: {later}")
        elif code:
            raise InstallError(code, "no checkpoint", "see above", later)

    def bundle(self) -> None:
        session, options = self.session, self.options
        say(f"bundle: {options.out}")
        session.need_base()
        arguments = ["--torch", session.build, "--python", options.target or session.python]
        arguments += ["--split", options.split] if options.split else []
        arguments += ["--with-python"] if options.bundle_python else []
        if options.dry_run:
            say(f"  would fetch what the *.lock files name: {' '.join(arguments)}")
            return
        command = session.bundle_command("make", str(options.out), *arguments)
        with session.locked():
            environ = session.package_environment(options.venv)
            if options.python_mirror:
                environ["UV_PYTHON_INSTALL_MIRROR"] = options.python_mirror
            code = processes.attached(command, environ, PROJECT, CHILD)
        if code:
            raise InstallError(
                code, "no bundle", "see above", "the same command again: it continues"
            )

    # ------------------------------------------------------------ what uses the environment

    def need_env(self) -> str:
        if not os.access(self.environment.python, os.X_OK):
            raise InstallError(
                ExitCode.BAD_INPUT,
                f"no environment in {self.environment.folder}",
                "stage env was left out, or its Python is not here",
                self.options.command("env"),
            )
        self.session.close_bundle()
        return str(self.environment.python)

    def doctor(self) -> None:
        say("doctor: does it compute correctly?")
        if self.options.dry_run:
            say("  would run: python -m vqa_repro.doctor")
            return
        python = self.need_env()
        if self.session.fresh:
            say("  (first imports take long, on slow or network disks some minutes)")
        aside = {name for name in self.session.set_aside if name.startswith("PYTHON")}
        hidden = sorted(aside - {"PYTHONINSPECT"})  # which the verbs set aside themselves
        if hidden:
            names = " ".join(hidden)
            say(f"  {names} is set aside here, but not by python -m vqa_repro.*: unset {names}")
        if processes.attached([python, "-m", "vqa_repro.doctor"], dict(os.environ)):
            raise InstallError(
                ExitCode.DOCTOR,
                "something is broken",
                "see above",
                f"do what is written there, then {self.options.command('doctor')}",
            )

    def train(self) -> None:
        rest = self.options.rest
        say(f"train: python -m vqa_repro.train --resume{''.join(' ' + word for word in rest)}")
        if self.options.dry_run:
            return
        python = self.need_env()
        without = list(self.session.without)
        if self.session.network:
            without.append(f"internet: {self.session.network}")
        os.environ["VQA_REPRO_WITHOUT"] = "".join(f"{line}\n" for line in without)
        processes.replace_by([python, "-m", "vqa_repro.train", "--resume", *rest])

    def test(self) -> None:
        rest = self.options.rest
        if self.options.dry_run:
            say(f"test: would run python -m pytest {' '.join(rest)}")
            return
        python = self.need_env()
        os.chdir(PROJECT)
        processes.replace_by([python, "-m", "pytest", *rest])

    def jupyter(self) -> None:
        from vqa_repro.install import jupyter

        venv, rest = self.options.venv, self.options.rest
        lab = Environment(self.session, venv / "jupyter", [PROJECT / "jupyter.lock"], "jupyter")
        if self.options.dry_run:
            if lab.state() is not State.READY:
                say(f"jupyter: would install what jupyter.lock names in {lab.folder}")
            words = f", with {' '.join(rest)}" if rest else ""
            say(f"jupyter: would start JupyterLab on 127.0.0.1{words}")
            return
        self.need_env()
        lab.recover()
        if lab.state() is not State.READY:
            self.session.need_base()
            say(f"jupyter: {lab.folder}")
            self.make(lab)
        with self.session.locked():
            server = jupyter.find()
            if server:
                where = f"(process {server.pid} on {jupyter.HOST})"
                say(f"jupyter: runs since {server.since} {where}")
                if rest:
                    say(f"  its arguments stay as they were; first: {program()} jupyter stop")
                server = jupyter.wait(self.session, None)
            else:
                say("jupyter: starting JupyterLab")
                server = jupyter.start(self.session, venv, lab.folder)
        print(*tunnel_lines(server.port, server.path), sep="\n")
        say(f"to stop it: {program()} jupyter stop")


def has_all_of(bundle: Path, command: list[str]) -> bool:
    """Return whether the checkpoints of ``command`` and those that the bundle lists are here."""
    import subprocess

    from vqa_repro.install.bundle_open import read_bundle

    try:
        files = read_bundle(bundle).files
    except UserError:
        return False  # opening it says what is wrong
    names = [name.rpartition("/")[2] for name in files if name.startswith("checkpoints/")]
    command = [*command, *names, "--offline"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode == 0


def session_of(arguments: list[str], base: str, version: str, rejected: list[str]) -> Session:
    try:
        os.getcwd()
    except OSError:
        raise UserError("the current folder was removed: change to another one") from None
    options = parse(arguments, os.environ)
    check_umask()
    used, set_aside = settings.clean(os.environ)
    for name in ("requirements.lock", "wordnet.lock", "jupyter.lock"):
        if not (PROJECT / name).is_file():
            raise UserError(f"no {PROJECT / name}: this is not a whole copy of the project")
    os.environ.setdefault("PYTHONUTF8", "1")
    return Session(options, base, version, rejected, used, set_aside, known_build(options))


def main(base: str, version: str, rejected: list[str], arguments: list[str] | None = None) -> int:
    """Run the stages that the arguments name; return the exit code."""
    session: Session | None = None
    processes.catch_signals()
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        session = session_of(arguments, base, version, rejected)
        return Stages(session).run()
    except processes.Signalled as signalled:
        if console.is_terminal():
            say("")
        console.complain("interrupted; the same command continues")
        return signalled.code
    except InstallError as error:
        console.report(error, session.log if session else None)
        return error.code
    except UserError as error:
        console.complain(f"error: {error}; see {program()} --help")
        return ExitCode.BAD_INPUT
    except OSError as error:
        code = ERRNO_CODES.get(error.errno or 0, ExitCode.INTERNAL)
        why = f"{error.filename or PROJECT}: {error.strerror or error}"
        console.report(
            InstallError(code, "the installation", why, "fix that; the same command continues")
        )
        return code
    except Exception:
        console.complain(f"{traceback.format_exc()}failed: an error in the installer itself")
        console.complain("  next: please report it, with these lines")
        return ExitCode.INTERNAL


if __name__ == "__main__":
    sys.exit("this is run by ./bootstrap.sh")
