"""Inject every tested fault and count the outcomes.

    python tests/faults/table.py                  # takes about as long as the tests
    VQA_KILLS=100 VQA_FUZZ=1000000 python tests/faults/table.py
    python tests/faults/table.py -m "not slow"    # pytest's options

A fault has one of two acceptable outcomes: the result is complete and verified, or one line says
what is wrong and no bad file is left under a valid name. This table says which of the two each
test expects; docs/faults.md describes them.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


Patterns = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """Tests by expected outcome, each a regular expression of file::test[parameter]."""

    recovers: Patterns = ()
    says: Patterns = ()


def of(file: str, *tests: str) -> Patterns:
    return tuple(rf"{file}\.py::{test}(?:\[.*\])?" for test in tests)


def with_parameters(file: str, test: str, *parameters: str) -> Patterns:
    return tuple(rf"{file}\.py::{test}\[{parameter}\]" for parameter in parameters)


def fault(*names: str) -> Patterns:
    return with_parameters(DOWNLOAD, "test_recovers", *names)


def given_up(*names: str) -> Patterns:
    return with_parameters(DOWNLOAD, "test_gives_up_with_a_clear_error", *names)


def hostile(*names: str) -> Patterns:
    return with_parameters("test_hostile", "test_hostile_files_are_refused", *names)


DOWNLOAD = "test_checkpoints_setup"
# A test belongs to the first row that names it.
DOWNLOADS = {
    "truncated body without a length": Row(
        fault("drop_half_unannounced_once", "drop_half_chunked_once")
    ),
    "connection drops": Row(
        fault("drop_.*", "reset_once", "empty_reply_once", "garbage_status_once"),
        given_up("drop_always_at_half", "empty_body"),
    ),
    "captive portal: a web page with status 200": Row(
        of(DOWNLOAD, "test_a_login_page_keeps_.*"),
        given_up("login_.*", "json_error_unannounced", "redirected_to_login"),
    ),
    "server ignores Range": Row(fault("ignores_range")),
    "416": Row(fault("range_refused") + of(DOWNLOAD, "test_a_checkpoint_of_roughly_known_size")),
    "206 with another range or a wrong total": Row(fault("range_.*"), given_up("unasked_piece")),
    "file changed, or the partial file is junk": Row(
        fault("etag_.*", "no_validators")
        + of(DOWNLOAD, "test_a_junk_part.*", "test_junk_notes.*", "test_a_part_of_wrong_bytes.*")
    ),
    "right size, a flipped byte": Row(fault("flipped_once"), given_up("flipped")),
    "another length, or bytes without end": Row(
        (), given_up("other_length", "longer_.*", "endless_.*", "announces_.*")
    ),
    "503, 429, 500, with and without Retry-After": Row(
        fault("busy_.*", "too_many_requests_once", "broken_once"), given_up("busy_always")
    ),
    "401, 403, 404, 407 and others": Row(
        (), given_up("forbidden", "missing", "needs_password", "proxy_password", "teapot")
    ),
    "server stalls or is very slow": Row(
        fault("stall_.*", "drip_once"), given_up("stall_always", "drip")
    ),
    "unrequested gzip": Row((), given_up("gzipped")),
    "redirects: loops, to files, away from https": Row(
        fault("redirected"),
        given_up("redirected_.*") + of(DOWNLOAD, "test_https_is_never_left_for_http"),
    ),
    "unknown host, no answer; proxies, private CA": Row(
        of(DOWNLOAD, "test_private_ca", "test_proxy_is_used.*"),
        of(
            DOWNLOAD,
            *("test_name_not_resolved", "test_connection_refused"),
            *("test_proxy_that_.*", "test_tls_expected.*"),
        ),
    ),
    "passwords in addresses": Row(
        of(DOWNLOAD, "test_passwords_.*", "test_a_password_is_not_carried_.*"),
        of("test_redact", "test_a_password_.*", "test_passwords_.*", "test_what_a_program_.*")
        + of("test_managed_python", "test_no_password_.*")
        + of("test_bootstrap", "test_an_address_that_pip_.*"),
    ),
    "a mirror lacks it": Row(of(DOWNLOAD, "test_sources_.*", "test_another_mirror_.*")),
    "corrupt or empty file of the right name": Row(
        of(
            DOWNLOAD,
            *("test_a_bad_file_.*", "test_several_bad_.*", "test_a_dangling_.*"),
            *("test_a_damaged_verdict.*", "test_a_changed_file_.*"),
        ),
        of(DOWNLOAD, "test_verify_sets_.*"),
    ),
    "killed or stopped during the download": Row(
        of(DOWNLOAD, "test_resumes_over_kills", "test_stopped_by_a_signal", "test_orphans_.*")
        + of("test_kills", "test_checkpoint_download")
        + of("test_export", "test_a_download_that_was_cut_off_.*")
    ),
    "two at once; stale, false or failing locks": Row(
        of(DOWNLOAD, "test_two_at_once.*", "test_the_lock_of_a_killed_.*")
        + of("test_locks", "test_whose_lock_.*", "test_many_at_once_.*", "test_an_empty_lock_.*"),
        of(DOWNLOAD, "test_waiting_ends"),
    ),
    "disk full, quota, read-only": Row(
        of(DOWNLOAD, "test_mode", "test_odd_paths", "test_symlinked_folder"),
        of(
            DOWNLOAD,
            *("test_too_little_.*", "test_disk_fills_up_.*", "test_quota", "test_read_only_disk"),
            "test_a_file_in_the_place_.*",
        ),
    ),
    "a wrong file on the USB stick": Row(
        of(DOWNLOAD, "test_copies_a_file_of_any_name"),
        of(DOWNLOAD, "test_a_wrong_file_is_refused.*", "test_a_folder_without_it"),
    ),
}
# Situations that people have met, and what clusters do to the environment.
SURROUNDINGS = {
    "a folder of one's own as people keep it": Row(
        of(
            "test_check",
            *("test_an_image_is_found_.*", "test_every_split_may_.*", "test_links_hidden_.*"),
            *("test_question_files_.*", "test_spellings_.*", "test_one_answer_.*"),
            *("test_the_field_image_.*", "test_fields_that_may_.*"),
        )
        + of(
            "test_formats",
            *("test_layouts_.*", "test_ok_vqa_.*", "test_other_splits", "test_text_.*"),
            "test_numbers_.*",
        )
    ),
    "folders without permission, a full or closed standard output": Row(
        (),
        of(
            "test_cli",
            *("test_a_standard_output_.*", "test_a_folder_without_.*", "test_a_link_to_nowhere_.*"),
            *("test_a_figure_of_.*", "test_a_folder_of_runs_.*"),
        ),
    ),
    "files of another data set, wrong ids, links to nowhere": Row(
        (),
        of("test_check", "test_ok_vqa_.*", "test_a_link_that_leads_.*", "test_counts_.*")
        + of("test_check", "test_images_of_one_name_.*", "test_swapped_.*")
        + of("test_check_verb", "test_a_damaged_split_.*", "test_a_link_to_.*")
        + of("test_formats", "test_errors_.*", "test_a_missing_split_.*")
        + of("test_vqa", "test_structure_.*")
        + of("test_vqa_accuracy", "test_bad_results"),
    ),
    "weights as people have them": Row(
        of("test_backbones", "test_wrappers_.*", "test_the_weights_of_the_part_.*"),
        of(
            "test_backbones",
            *("test_safetensors_.*", "test_no_checkpoint_.*", "test_weights_that_.*"),
            "test_a_truncated_file_.*",
        ),
    ),
    "HEIC, DICOM, a web page or a pointer in place of a photo": Row(
        (), of("test_images", "test_what_is_no_photo_.*")
    ),
    "a pipe, a socket or a device in place of a file": Row(
        (),
        of("test_files", "test_pipes_.*")
        + of("test_check_verb", "test_a_pipe_.*")
        + of(DOWNLOAD, "test_a_pipe_.*"),
    ),
    "a pip.conf or uv.toml that pip or uv refuses": Row(
        (),
        of("test_installer_parts", "test_a_pip_conf_that_.*", "test_a_uv_toml_.*")
        + of("test_bootstrap", "test_a_broken_pip_conf_.*"),
    ),
    "proxies of another kind; no home folder": Row(
        of(DOWNLOAD, "test_all_proxy_.*"),
        of(DOWNLOAD, "test_a_proxy_that_cannot_.*", "test_a_user_without_a_home_.*")
        + of("test_installer_parts", "test_a_proxy_that_does_.*")
        + of("test_doctor", "test_without_a_folder_.*"),
    ),
    "variables and limits of clusters": Row(
        of("test_bootstrap", "test_variables_that_.*", "test_a_terminal_with_tostop.*")
        + of("test_variables", "test_a_locale_.*"),
        of("test_variables", "test_pythonpath_.*", "test_a_useless_.*", "test_a_command_ends_.*")
        + of("test_variables", "test_a_umask_.*", "test_a_name_that_.*")
        + of("test_bootstrap", "test_a_umask_.*")
        + of("test_variables", "test_limits_.*", "test_a_verb_names_.*")
        + of("test_bootstrap", "test_limits_are_named", "test_an_odd_index_.*")
        + of("test_bootstrap", "test_what_cannot_be_an_index_.*")
        + of("test_cli", "test_too_little_virtual_memory_.*"),
    ),
    "CUDA refuses the cards": Row((), of("test_doctor", "test_why_torch_sees_no_gpu")),
    "damaged or altered packages in an environment": Row(
        of(
            "test_bootstrap",
            *("test_another_version_of_a_package_.*", "test_a_damaged_uv_.*"),
            "test_a_damaged_environment_.*",
        ),
        of("test_bootstrap", "test_a_damaged_installer_.*")
        + of("test_installed", "test_a_changed_file_.*", "test_damage_of_the_same_size_.*"),
    ),
    "an environment whose Python or path is not here": Row(
        of("test_bootstrap", "test_an_environment_is_kept_.*", "test_a_leftover_.*")
        + of("test_installed", "test_scripts_of_.*"),
        of("test_bootstrap", "test_using_an_environment_.*", "test_a_dangling_link_.*"),
    ),
    "the installer's log vanishes, or the installer is killed": Row(
        (), of("test_bootstrap", "test_losing_the_log_.*", "test_an_installer_that_is_killed.*")
    ),
    "bootstrap.sh called in odd ways": Row(
        of(
            "test_bootstrap",
            "test_any_shell_.*",
            "test_it_is_found_.*",
            "test_a_closed_pipe_does_not_stop_the_installation",
        ),
        of(
            "test_bootstrap", "test_sourced_.*", "test_windows_line_.*", "test_a_removed_current_.*"
        ),
    ),
    "two trainings in one run folder": Row(
        of("test_run_folder", "test_the_second_of_two_runs_takes.*"),
        of("test_run_folder", "test_a_second_training.*", "test_the_second_of_two_runs_with.*"),
    ),
}
OTHERS = {
    "bootstrap.sh killed, stopped, run twice": Row(
        of(
            "test_bootstrap",
            *("test_killed_at_any_moment.*", "test_the_installer_of_a_killed_.*"),
            *("test_two_at_once_.*", "test_a_lock_with_.*", "test_a_signal_ends_.*"),
            *("test_a_big_wheel_.*", "test_killed_while_installing_.*", "test_without_proc_.*"),
        ),
        of("test_bootstrap", "test_a_lock_of_another_machine_.*"),
    ),
    "bootstrap.sh on a full disk, with wrong hashes, on an unsupported machine": Row(
        of(
            "test_bootstrap",
            *("test_a_vanished_python.*", "test_a_moved_project.*", "test_interfering_.*"),
            *("test_a_working_python_.*", "test_a_uv_with_another_hash.*", "test_odd_paths"),
            *("test_a_home_that_.*", "test_a_python_without_.*", "test_no_curl_.*"),
        ),
        of(
            "test_bootstrap",
            *("test_too_little_.*", "test_a_disk_that_.*", "test_another_hash_.*"),
            *("test_all_problems_.*", "test_systems_.*", "test_half_a_copy.*"),
            *("test_unsuitable_.*", "test_a_folder_with_.*", "test_a_failure_shows.*"),
            *("test_a_project_that_.*", "test_a_driver_in_trouble_.*"),
            *("test_a_disk_with_too_few_.*", "test_a_refusal_of_the_file_system_.*"),
        ),
    ),
    "a bundle interrupted while built, damaged, for another machine, or untrusted": Row(
        of(
            "test_bundle",
            *("test_killed_.*", "test_a_big_wheel_.*", "test_building_again_.*"),
            *("test_files_outside_.*", "test_unrelated_.*", "test_a_stick_.*"),
        )
        + of("test_bootstrap", "test_the_child_of_a_killed_.*"),
        of(
            "test_bundle",
            *(
                "test_every_fault_.*",
                "test_parts_missing_.*",
                "test_impossible_.*",
                "test_damaged_.*",
            ),
            *("test_a_bundle_of_another_.*", "test_a_wheel_outside_.*", "test_too_little_.*"),
            *("test_wheels_with_.*", "test_a_disk_that_.*"),
        )
        + of("test_bootstrap", "test_a_damaged_bundle_.*", "test_a_bundle_for_something_.*"),
    ),
    "training killed at random moments": Row(of("test_kills", "test_training")),
    "extraction killed at random moments": Row(
        of("test_kills", "test_extraction") + of("test_extract", "test_a_killed_.*")
    ),
    "stopped while a file is being written": Row((), of("test_files", "test_a_signal_leaves_.*")),
    "training stopped by Ctrl-C, SIGTERM, SIGUSR1, SIGHUP": Row(
        of("test_train", "test_stopped_anywhere.*")
    ),
    "several processes train: a signal, a failure of one": Row(
        of("test_distributed", "test_stopped_by_a_signal_.*"),
        of("test_distributed", "test_the_end_of_one_.*"),
    ),
    "checkpoint truncated, or with a flipped bit": Row(
        of("test_train", "test_a_damaged_checkpoint_.*") + of("test_training", "test_one_.*")
    ),
    "disk full while training": Row(
        of("test_training", "test_a_disk_that_.*") + of("test_train", "test_a_full_disk_.*")
    ),
    "disk without free inodes, or read-only": Row(
        of("test_disks", "test_running_out_.*_training_.*", "test_a_read_only_.*_reading"),
        of("test_disks", "test_running_out_.*_verbs_.*", "test_a_read_only_.*_writing"),
    ),
    "loss infinite or not a number": Row(
        (),
        of("test_training", "test_a_non_finite_.*", "test_the_first_bad_.*"),
    ),
    "GPU or machine out of memory": Row(
        (),
        of("test_training", "test_a_full_gpu_.*", "test_an_allocation_.*")
        + of("test_memory", "test_out_of_memory_.*"),
    ),
    "code in a checkpoint, weights or image": Row((), hostile("code .*", "a program .*")),
    "paths and links that leave a folder": Row(
        (), hostile("a link .*", "a path .*", "a run .* name.*")
    ),
    "bombs: small files that unpack, or claim to unpack, to gigabytes": Row(
        (),
        hostile("a bomb .*", ".* of gigabytes", ".* gigabytes", "rows .*", ".* size", ".* end"),
    ),
    "recipes and run folders with sizes beyond any memory": Row(
        (), of("test_hostile", "test_sizes_.*")
    ),
    "control characters for the terminal": Row((), hostile("control .*")),
    "a checkpoint of another program": Row((), of("test_training", "test_a_checkpoint_of_.*")),
    "files damaged at random (fuzzing)": Row((), of("test_fuzz", "test_damaged_files_.*")),
}
ROWS = DOWNLOADS | SURROUNDINGS | OTHERS


def short(node: str) -> str:
    """Return the node without the folders of its file."""
    return re.sub(r"^.*?([^/]*\.py::)", r"\1", node)


def place_of(node: str) -> tuple[str, str] | None:
    """Return the row of a test and its expected outcome, or None."""
    name = short(node)
    for row, wanted in ROWS.items():
        for ending in ("recovers", "says"):
            if any(re.fullmatch(pattern, name) for pattern in getattr(wanted, ending)):
                return row, ending
    return None


class Count:
    """A pytest plugin that runs the tests with a row and counts their outcomes."""

    def __init__(self) -> None:
        self.ended: dict[str, Counter[str]] = {row: Counter() for row in ROWS}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if place_of(item.nodeid)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        place = place_of(report.nodeid)
        if place is None or (report.when != "call" and report.passed):
            return
        row, ending = place
        counts = self.ended[row]
        if not report.passed:
            counts["skipped" if report.skipped else "WRONG"] += 1
            return
        # A test that injects many faults counts their outcomes itself.
        properties = dict(report.user_properties)
        if not properties:
            counts[ending] += 1
        counts["recovers"] += properties.get("recovered", 0)
        counts["says"] += properties.get("refused", 0)

    def lines(self) -> Iterator[str]:
        total: Counter[str] = Counter()
        columns = ("recovers", "says", "WRONG", "skipped")
        yield f"{'fault':80}{'injected':>9}{'recovers':>10}{'says so':>9}{'WRONG':>7}{'skipped':>9}"
        for row, counts in [*self.ended.items(), ("all", total)]:
            injected = counts["recovers"] + counts["says"] + counts["WRONG"]
            numbers = [counts[column] for column in columns]
            yield f"{row:80}{injected:9,}{{:10,}}{{:9,}}{{:7,}}{{:9,}}".format(*numbers)
            if counts is not total:
                total.update(counts)


def patterns() -> Patterns:
    """Return the patterns of all rows."""
    return tuple(pattern for row in ROWS.values() for pattern in row.recovers + row.says)


def named() -> set[str]:
    """Return the stems of the test files of all rows."""
    return {pattern.partition("\\.py")[0] for pattern in patterns()}


def main() -> int:
    files = sorted(str(path) for path in TESTS.rglob("test_*.py") if path.stem in named())
    count = Count()
    code = pytest.main([*files, "-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[count])
    print("\n".join(count.lines()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
