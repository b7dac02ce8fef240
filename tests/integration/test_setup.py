"""setup/host.sh: what it says, what it leaves alone, and what it makes.

Runs as root on a host set up by `setup/host.sh --dev`. What would change the host runs in a mount
namespace of its own, over scratch copies; the host itself is only read.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import tomllib
from pathlib import Path

import pytest

from agent.config import NodeConfig, load

pytestmark = pytest.mark.integration

REPO = Path(__file__).resolve().parents[2]
HOST_SH = REPO / "setup/host.sh"
LIB = Path("/usr/lib/kindling")
STATE = Path("/var/lib/kindling")
CLASS_MB = 512
WITHIN_S = 300


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


def in_namespace(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a bash script where mounts made and undone are nobody else's."""
    return run("unshare", "--mount", "--propagation", "private", *flags, "bash", "-euc", script)


def with_parts(script: str) -> str:
    """Return a script that may call the functions of setup's parts on places of its own."""
    return f"""
        for part in lib agent slots fetch; do . {REPO}/setup/$part.sh; done
        workspace; trap 'umount -R "$TMP/disk"; rm -rf "$TMP"' EXIT
        mkdir "$TMP/disk"; mount -t tmpfs -o "size=${{DISK_MB:-700}}m,mode=755" tmpfs "$TMP/disk"
        {script}
    """


def mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line.split()[4] for line in lines if "kindling" in line)


def tree(*tops: str) -> dict[str, tuple[int, int, int, int]]:
    """Return what --print could have touched: every path's owner, mode, inode and change time."""
    found = {}
    for top in tops:
        for folder, names, files in os.walk(top):
            for name in [*names, *files]:
                path = os.path.join(folder, name)
                if "/slots/" in path or "__pycache__" in path:
                    continue
                stat = os.lstat(path)
                found[path] = (stat.st_uid, stat.st_mode, stat.st_ino, stat.st_ctime_ns)
    return found


class TestWords:
    def test_help_names_every_option(self):
        done = run(HOST_SH, "--help")
        assert done.returncode == 0
        for option in (
            "--print",
            "--dev",
            "--bench",
            "--slots",
            "--slots-dir",
            "--boot",
            "--undo",
            "--help",
        ):
            assert option in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--everything"], "unknown option '--everything'"),
            (["--slots"], "--slots wants a value"),
            (["--slots", "many"], "not 'many'"),
            (["--slots", "-1"], "not '-1'"),
            (["--slots-dir", "here"], "absolute path"),
            (["--slots-dir", "/srv/a b"], "without blanks"),
        ],
    )
    def test_wrong_use_exits_2_and_says_why(self, arguments, says):
        done = run(HOST_SH, *arguments)
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_install_refuses_unknown_options_too(self):
        done = run(REPO / "setup/install.sh", "--everything")
        assert done.returncode == 2
        assert "--everything" in done.stderr

    def test_units_are_well_formed(self):
        for unit in (REPO / "systemd").glob("*.service"):
            done = run("systemd-analyze", "verify", unit)
            assert unit.name not in done.stderr


class TestPrint:
    def test_changes_nothing(self):
        places = ("/usr/lib/kindling", "/etc/kindling", "/etc/sysctl.d", "/etc/systemd/system")
        before = (tree(*places), mounts())
        done = run(HOST_SH, "--print", "--slots", "3", "--big-slots", "1")
        assert done.returncode == 0, done.stderr
        assert (tree(*places), mounts()) == before
        assert "would take back slot" in done.stdout
        assert "would make 1 slots of 10240 MB" in done.stdout
        assert done.stdout.splitlines()[-1] == "setup: nothing was changed (--print)"

    def test_lists_every_step_of_a_fresh_host(self):
        done = in_namespace(
            f"""
            for place in /usr/lib/kindling /var/lib/kindling /usr/local/bin /etc/sysctl.d; do
              mount -t tmpfs tmpfs "$place"
            done
            {HOST_SH} --print --dev
            find /usr/lib/kindling /var/lib/kindling /usr/local/bin -mindepth 1
            """
        )
        assert done.returncode == 0, done.stderr
        for step in (
            "would read the package lists of Debian",
            "would unpack containerd (>= 2.1)",
            "would unpack rootlesskit (>= 2.0)",
            "would unpack soci-snapshotter (>= 0.4)",
            "would install /etc/sysctl.d/60-kindling.conf",
            "would make 16 slots of 512 MB",
            "would install the dependencies of requirements.lock, by hash",
            "would compile what a warm call touches",
            "would install the agent",
            "would link /usr/local/bin/kindling",
        ):
            assert step in done.stdout
        assert done.stdout.splitlines()[-1] == "setup: nothing was changed (--print)"

    def test_names_no_package_host(self):
        assert "://" not in run(HOST_SH, "--print").stdout


class TestSecondRun:
    def test_finds_everything_in_place_and_downloads_nothing(self):
        first = run(HOST_SH)
        assert first.returncode == 0, first.stderr
        before = (tree("/usr/lib/kindling/bin", "/usr/lib/kindling/pkg"), mounts())
        second = run(HOST_SH)
        assert second.returncode == 0, second.stderr
        assert second.stderr == ""
        lines = [line.removeprefix("setup:").strip() for line in second.stdout.splitlines()]
        assert lines[-1].endswith("of which downloads 0 s")
        # The agent itself may have changed in the tree between the two runs.
        quiet = (
            "in place",
            "not PID 1",
            "compile what a warm call touches",
            "install the agent",
            "cgroups favour moves",
            "open files stay",
        )
        assert [line for line in lines[:-1] if not any(words in line for words in quiet)] == []
        assert (tree("/usr/lib/kindling/bin", "/usr/lib/kindling/pkg"), mounts()) == before

    def test_boot_part_alone_finds_everything_too(self):
        before = mounts()
        done = run(LIB / "setup/host.sh", "--boot")
        assert done.returncode == 0, done.stderr
        assert mounts() == before


class TestBinaries:
    def test_run_as_the_agents_user(self):
        for binary in ("containerd", "ctr", "containerd-shim-runc-v2", "rootlesskit"):
            flag = "-v" if "shim" in binary else "--version"
            done = run(
                *("setpriv", "--reuid=kindling", "--regid=kindling", "--init-groups"),
                *(LIB / "bin" / binary, flag),
            )
            assert done.returncode == 0, done.stderr

    def test_versions_name_their_source(self):
        rows = [line.split(" ") for line in (LIB / "versions").read_text().splitlines()]
        assert all(len(row) == 3 for row in rows)
        assert {"containerd", "rootlesskit", "crun"} <= {row[0] for row in rows}

    @pytest.mark.parametrize(
        ("said", "way_out"),
        [
            (
                "E: Release file for http://m/InRelease is expired (invalid since 15d).",
                "Valid-Until",
            ),
            ("E: Failed to fetch http://m/InRelease  Connection refused", "KINDLING_MIRROR"),
        ],
    )
    def test_mirror_without_lists_is_told_by_its_reason(self, said, way_out):
        script = f"printf '%s\\n' 'Err:1 http://m' '{said}' >$TMP/log; no_lists $TMP/log"
        done = in_namespace(with_parts(script))
        assert done.returncode == 0, done.stderr
        assert way_out in done.stdout

    def test_agent_is_executable_and_readable_by_its_user(self):
        done = run(
            *("setpriv", "--reuid=kindling", "--regid=kindling", "--init-groups"),
            *(LIB / "venv/bin/python", "-I", "-c", "import agent; print(agent.__file__)"),
        )
        assert done.stdout.startswith(str(LIB / "venv"))
        assert os.readlink("/usr/local/bin/kindling") == str(LIB / "venv/bin/kindling")


class TestUser:
    def test_has_its_own_range_of_subordinate_ids(self):
        for name in ("/etc/subuid", "/etc/subgid"):
            ranges = []
            for line in Path(name).read_text().splitlines():
                user, first, count = line.split(":")
                ranges.append((int(first), int(first) + int(count), user))
            ours = [entry for entry in ranges if entry[2] == "kindling"]
            assert len(ours) == 1
            assert ours[0][1] - ours[0][0] >= 65536
            for low, high, user in ranges:
                if user != "kindling":
                    assert high <= ours[0][0] or ours[0][1] <= low

    def test_range_avoids_what_is_taken(self):
        done = in_namespace(
            f"""
            printf 'a:100000:65536\\nb:165536:1\\n' >/tmp/subuid
            printf 'c:231072:65536\\n' >/tmp/subgid
            mount --bind /tmp/subuid /etc/subuid; mount --bind /tmp/subgid /etc/subgid
            SUBIDS=65536
            eval "$(sed -n '/^free_subids()/,/^}}/p' {HOST_SH})"
            free_subids
            """,
        )
        Path("/tmp/subuid").unlink()
        Path("/tmp/subgid").unlink()
        assert done.stdout.strip() == "296608", done.stderr

    def test_cannot_put_a_link_in_the_way_of_root(self):
        # Root mounts below slots at boot: whoever may rename it chooses where root writes.
        done = run(
            *("setpriv", "--reuid=kindling", "--regid=kindling", "--init-groups"),
            *("mv", STATE / "slots", STATE / "elsewhere"),
        )
        assert done.returncode != 0
        assert (STATE / "slots").is_dir()


class TestCgroups:
    def test_user_owns_its_groups(self):
        top = Path("/sys/fs/cgroup")
        owner = pwd.getpwnam("kindling").pw_uid
        for controller in ("memory", "cpu", "pids", "freezer"):
            if (top / controller).is_dir():
                assert (top / controller / "kindling").stat().st_uid == owner
                assert (top / controller / "kindling/cgroup.procs").stat().st_uid == owner
        if (top / "cpuset").is_dir():
            assert (top / "cpuset/kindling/cpuset.cpus").read_text().strip()


class TestSlots:
    def test_are_mounted_as_described(self):
        described = json.loads((STATE / "slots/slots.json").read_text())
        assert described["kind"] == "loop"
        owner = pwd.getpwnam("kindling").pw_uid
        rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        mounted = {row[1]: row[3] for row in rows}
        for entry in described["classes"]:
            for number in range(entry["count"]):
                slot = STATE / "slots" / str(entry["class_mb"]) / str(number)
                options = mounted[str(slot)].split(",")
                assert {"nosuid", "nodev"} <= set(options)
                assert slot.stat().st_uid == owner
                for name in ("upper", "work"):
                    assert (slot / name).stat().st_uid == owner
                assert slot.with_suffix(".img").stat().st_uid == 0
                assert os.statvfs(slot).f_files >= entry["inodes"]

    def test_a_new_slot_offers_its_class_and_no_more(self):
        done = in_namespace(
            with_parts(
                """
                slot_room "$TMP/disk/slots" 1 0 >&2
                stat -f -c '%a %S' "$TMP/disk/slots/512/0"
                take_back "$TMP/disk/slots"
                [ ! -e "$TMP/disk/slots" ]
                """
            )
        )
        assert done.returncode == 0, done.stderr
        blocks, size = map(int, done.stdout.split())
        assert CLASS_MB << 20 <= blocks * size < (CLASS_MB + 1) << 20

    def test_disk_too_small_says_how_to_mend_it(self):
        done = in_namespace("DISK_MB=287\n" + with_parts('slot_room "$TMP/disk/slots" 16 0'))
        assert done.returncode == 1
        assert "has 287 MB free" in done.stderr
        assert "--slots-dir" in done.stderr

    def test_directory_with_other_files_is_refused(self):
        done = in_namespace(with_parts('touch "$TMP/disk/letter"; slot_room "$TMP/disk" 1 0'))
        assert done.returncode == 1
        assert "holds other files" in done.stderr

    def test_overcommit_is_stated(self):
        done = in_namespace(
            with_parts(
                """
                slot_room "$TMP/disk/slots" 2 0 >&2
                cat "$TMP/disk/slots/slots.json"
                take_back "$TMP/disk/slots"
                """
            )
        )
        assert json.loads(done.stdout)["overcommit"] > 1
        assert "promise 1024 MB" in done.stderr


class TestUndo:
    # Over copies of the places it removes, with no process, cgroup or limit of the host in reach.
    SCRATCH = """
        cd /
        awk '$5 ~ "^/(var/lib|run)/kindling" {print $5}' /proc/self/mountinfo |
          sort -r | xargs -r umount
        mkdir /tmp/kindling-undo && mount -t tmpfs tmpfs /tmp/kindling-undo
        for place in /etc /usr/lib /usr/local /usr/sbin /var/cache /var/lib; do
          top=/tmp/kindling-undo/${place//\\//_}; mkdir -p "$top/upper" "$top/work"
          options=lowerdir=$place,upperdir=$top/upper,workdir=$top/work
          mount -t overlay overlay -o "$options" "$place"
        done
        mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /run
        rm -f /usr/lib/kindling/setup/limits-before /usr/lib/kindling/setup/devices-before
    """

    def scratch(self, script: str) -> subprocess.CompletedProcess[str]:
        try:
            return in_namespace(self.SCRATCH + script, "--pid", "--fork", "--mount-proc")
        finally:
            Path("/tmp/kindling-undo").rmdir()

    def undo(self, before: str, after: str) -> subprocess.CompletedProcess[str]:
        return self.scratch(f"{before}\n{HOST_SH} --undo\n{after}")

    def test_takes_everything_back(self):
        before = mounts()
        done = self.undo(
            "",
            """
            for place in /usr/lib/kindling /var/lib/kindling /var/lib/kindling-test /etc/kindling \
              /etc/sysctl.d/60-kindling.conf /usr/local/bin/kindling \
              /var/lib/soci-snapshotter-grpc; do
              if [ -e "$place" ] || [ -L "$place" ]; then echo "left: $place"; fi
            done
            if grep kindling /etc/passwd /etc/group /etc/subuid /etc/subgid; then echo left; fi
            """,
        )
        assert done.returncode == 0, done.stderr
        assert "left" not in done.stdout
        assert mounts() == before
        assert (LIB / "bin/containerd").exists()

    def test_refuses_while_the_agent_runs(self):
        done = self.undo(
            "setpriv --reuid=kindling --regid=kindling --init-groups sleep 60 & sleep 0.2",
            "",
        )
        assert done.returncode == 1
        assert "the agent is running (pids " in done.stderr
        assert "stop it first" in done.stderr

    def test_keeps_an_edited_configuration(self):
        done = self.undo("echo '# mine' >>/etc/kindling/kindling.toml", "cat /etc/kindling/*.toml")
        assert done.returncode == 0, done.stderr
        assert "# mine" in done.stdout


class TestFreshHost:
    def test_without_slots_it_is_set_up_for_tmpfs_and_says_so(self):
        done = TestUndo().scratch(
            f"""
            umount /sys/fs/cgroup
            rm -rf /etc/kindling /var/lib/kindling /var/lib/kindling-test
            rm -f {LIB}/setup/settings {LIB}/setup/kindling.toml.installed
            {HOST_SH} --slots 0 --big-slots 0
            grep -x 'writable = "tmpfs"' /etc/kindling/kindling.toml
            [ ! -e /var/lib/kindling/slots ]
            {LIB}/venv/bin/kindling check
            {LIB}/setup/host.sh --boot
            {HOST_SH} --slots 1
            ! grep -x 'writable = "tmpfs"' /etc/kindling/kindling.toml
            """
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no slots: writable layers are tmpfs" in done.stdout
        assert "writable layers: ok, tmpfs" in done.stdout

    def test_check_is_content_after_setup(self):
        # What setup cannot mend here is advice, and does not count.
        done = TestUndo().scratch(
            f"""
            umount /sys/fs/cgroup; umount /run
            run=/tmp/kindling-undo/run; mkdir -p "$run/upper" "$run/work"
            mount -t overlay overlay -o "lowerdir=/run,upperdir=$run/upper,workdir=$run/work" /run
            {HOST_SH} --slots 2 --big-slots 0
            {LIB}/venv/bin/kindling check
            {LIB}/venv/bin/kindling check --json | grep '"ok": true,' | head -n 1
            """
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "run directory on tmpfs: ok, tmpfs" in done.stdout
        for line in done.stdout.splitlines():
            assert ": run '" not in line or ": advice, " in line


class TestPackages:
    # A real package, whose script asks what every package asks before it starts its service; then
    # it waits, for setup to be killed in the middle.
    PACKAGE = f"""
        mkdir -p /tmp/kindling-undo/package/DEBIAN; cd /tmp/kindling-undo
        printf '%s\\n' 'Package: kindling-policy-test' 'Version: 1' 'Architecture: all' \\
          'Maintainer: nobody <nobody@localhost>' 'Description: asks' >package/DEBIAN/control
        printf '%s\\n' '#!/bin/sh' 'cd /tmp/kindling-undo; status=none' \\
          'policy=/usr/sbin/policy-rc.d' \\
          'if [ -x $policy ]; then status=0; $policy any start || status=$?; fi' \\
          'echo $status >asked.new; mv asked.new asked' \\
          'while [ -e wait ]; do sleep 0.1; done' >package/DEBIAN/postinst
        chmod 0755 package package/DEBIAN package/DEBIAN/postinst
        dpkg-deb -Zgzip --root-owner-group -b package package.deb >/dev/null
        for part in lib agent slots fetch; do . {REPO}/setup/$part.sh; done
        workspace; trap 'cd /; rm -rf "$TMP"' EXIT
        policy() {{ stat -c %A "$POLICY" 2>/dev/null && cat "$POLICY" || echo none; }}
    """

    @pytest.mark.parametrize("host", ["exit 0", ""], ids=["its own policy", "no policy"])
    @pytest.mark.parametrize("killed", [True, False])
    def test_a_killed_package_step_leaves_no_policy_behind(self, host, killed):
        write = f"printf '#!/bin/sh\\n{host}\\n' >$POLICY; chmod 0755 $POLICY" if host else "true"
        end = "kill -KILL -1" if killed else "rm wait"
        done = TestUndo().scratch(
            f"""
            {self.PACKAGE}
            rm -f "$POLICY"; {write}
            touch wait; policy >before
            install_packages /tmp/kindling-undo/package.deb & setup=$!
            until [ -e asked ]; do kill -0 $setup; sleep 0.05; done
            if [ -x "$POLICY" ]; then policy >during; else cp before during; fi
            {end}; wait $setup || echo "setup ended with $?"
            if [ -x "$POLICY" ]; then policy >after; else cp before after; fi
            if left_policy; then clear_policy; fi
            policy >cleared
            echo "asked: $(cat asked)"
            cmp before during; cmp before after; cmp before cleared
            """
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "asked: 101" in done.stdout
        assert ("setup ended with 137" in done.stdout) == killed

    def test_a_policy_that_an_earlier_version_left_is_taken_back(self):
        done = TestUndo().scratch(
            f"""
            {self.PACKAGE}
            printf '#!/bin/sh\\n# kindling setup: …\\nexit 101\\n' >"$POLICY"; chmod 0755 "$POLICY"
            echo mine >"$POLICY.kindling-saved"
            {HOST_SH} --slots 1 --big-slots 0 | grep "that a killed setup left"
            cat "$POLICY"
            """
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith("mine\n")


class TestConfiguration:
    def test_shown_defaults_are_the_defaults(self):
        shown = [
            line.removeprefix("# ")
            for line in (REPO / "setup/kindling.toml").read_text().splitlines()
            if line.startswith("# [") or " = " in line
        ]
        sections = tomllib.loads("\n".join(shown))
        assert sections.pop("volumes") == {"data": "/srv/data"}
        defaults = NodeConfig().model_dump(mode="json")
        for section, values in sections.items():
            assert values == {key: defaults[section][key] for key in values}

    def test_installed_file_is_accepted(self):
        assert load(REPO / "setup/kindling.toml") == NodeConfig()
