"""What packages' maintainer scripts would have done to a fresh root filesystem, done from outside.

The scripts are not run for the base: they would need the tree as a running system, and they take longer than all the
rest. Each function below says whose work it does. Everything here works for an ordinary user too; what needs root
(`ldconfig -r`) is then left out, and the loader's built-in directories are enough until a package is installed inside.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
import zipfile

MOUNT_POINTS = (
    "proc", "sys", "dev", "run", "tmp", ".cadenza/run", ".cadenza/lib", ".cadenza/build", ".cadenza/cache/pip",
    ".cadenza/cache/uv", ".cadenza/cache/tools",
)  # fmt: skip
MOUNT_FILES = ("etc/resolv.conf", "etc/hosts", "etc/hostname", ".cadenza/uv")
"""What containers and build steps mount on; there beforehand, so that no step's layer gets them."""

MERGED = ("bin", "sbin", "lib", "lib64")

EXCLUDED = (
    "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian/*", "usr/share/linda/*",
    "usr/share/groff/*",
)  # fmt: skip
"""Left out of images; also said to the dpkg inside, for what is installed later."""

DPKG_CONFIG = (
    "# Images hold no manuals and translations; licences stay.\n"
    + "".join(f"path-exclude /{one}\n" for one in EXCLUDED)
    + "path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\n"
    "# pip installs for the whole system here: an image is one environment.\n"
    "path-exclude /usr/lib/python3*/EXTERNALLY-MANAGED\n"
    "# A layer is on disk as a whole or not at all.\n"
    "force-unsafe-io\n"
)

_APT_CONFIG = """\
Acquire::Languages "none";
APT::AutoRemove::SuggestsImportant "false";
// What apt can make again in a moment would be most of a layer.
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""

# libpam-runtime makes these from its templates with the modules that are installed; here that is pam_unix alone.
_PAM_SESSION = "session [default=1] pam_permit.so\nsession requisite pam_deny.so\nsession required pam_permit.so\n"
_PAM_REST = "{0} requisite pam_deny.so\n{0} required pam_permit.so\n"
_PAM = {
    "common-auth": "auth [success=1 default=ignore] pam_unix.so nullok\n" + _PAM_REST.format("auth"),
    "common-account": "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n"
    + _PAM_REST.format("account"),
    "common-password": "password [success=1 default=ignore] pam_unix.so obscure\n" + _PAM_REST.format("password"),
    "common-session": _PAM_SESSION + "session required pam_unix.so\n",
    "common-session-noninteractive": _PAM_SESSION + "session required pam_unix.so\n",
}


def prepare(root: str) -> None:
    """Before anything is unpacked: /usr merged, as `usrmerge` makes it, and the directories of the mount points."""
    for name in MERGED:
        os.makedirs(os.path.join(root, "usr", name), exist_ok=True)
        os.symlink("usr/" + name, os.path.join(root, name))
    os.chmod(root, 0o755)


def finish(root: str) -> None:
    """All of it, in an order in which each finds what it needs."""
    _directories(root)
    _accounts(root)
    _settings(root)
    _pam(root)
    _alternatives(root)
    _certificates(root)
    loader_cache(root)


def _write(root: str, path: str, text: str, mode: int = 0o644) -> None:
    whole = os.path.join(root, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(whole, mode)


def _copy(root: str, source: str, target: str) -> None:
    if os.path.exists(os.path.join(root, source)) and not os.path.lexists(os.path.join(root, target)):
        os.makedirs(os.path.dirname(os.path.join(root, target)), exist_ok=True)
        shutil.copy(os.path.join(root, source), os.path.join(root, target))


def _directories(root: str) -> None:
    """base-files, apt, and what a container needs to mount on."""
    plain = (
        "home", "media", "mnt", "opt", "srv", "boot", "var/local", "var/mail", "var/spool/mail", "var/opt", "etc/opt",
        "usr/local/share/ca-certificates",
    )  # fmt: skip
    local = ("bin", "etc", "games", "include", "lib", "sbin", "share", "share/man", "src")
    apt = ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt", "var/cache/debconf")
    for path in (*plain, *("usr/local/" + one for one in local), *apt, *MOUNT_POINTS):
        whole = os.path.join(root, path)
        if not os.path.islink(whole):
            os.makedirs(whole, exist_ok=True)
    for path, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("run", 0o755)):
        os.makedirs(os.path.join(root, path), exist_ok=True)
        os.chmod(os.path.join(root, path), mode)
    os.makedirs(os.path.join(root, "run/lock"), exist_ok=True)
    for link, target in (("var/run", "/run"), ("var/lock", "/run/lock"), ("etc/mtab", "../proc/self/mounts")):
        if not os.path.lexists(os.path.join(root, link)):
            os.symlink(target, os.path.join(root, link))
    if os.geteuid() == 0:  # apt fetches as this user (see _accounts)
        for path in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
            os.chown(os.path.join(root, path), 42, 0)
            os.chmod(os.path.join(root, path), 0o700)
    for path in MOUNT_FILES:
        if not os.path.lexists(os.path.join(root, path)):
            _write(root, path, "")


def _accounts(root: str) -> None:
    """base-passwd, passwd, apt: users, groups and their shadows."""
    shadows = {"passwd": "{}:*:19700:0:99999:7:::\n", "group": "{}:*::\n"}
    for kind, shadow in shadows.items():
        with open(os.path.join(root, f"usr/share/base-passwd/{kind}.master"), encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
        if kind == "passwd" and not any(line.startswith("_apt:") for line in lines):
            lines.append("_apt:*:42:65534::/nonexistent:/usr/sbin/nologin")
        names = [line.split(":")[0] for line in lines]
        # The master file has "*" for a password; with shadows the field is "x".
        _write(root, f"etc/{kind}", "".join(line.replace(":*:", ":x:", 1) + "\n" for line in lines))
        _write(root, "etc/shadow" if kind == "passwd" else "etc/gshadow", "".join(map(shadow.format, names)), 0o640)
    for path in ("etc/subuid", "etc/subgid", "var/log/faillog", "var/log/lastlog"):
        _write(root, path, "")


def _settings(root: str) -> None:
    """base-files, libc-bin, debianutils, tzdata, dpkg, and the rules of an image: no daemon starts in a build."""
    for source, target in (
        ("usr/share/base-files/profile", "etc/profile"),
        ("usr/share/base-files/motd", "etc/motd"),
        ("usr/share/base-files/dot.profile", "root/.profile"),
        ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
        ("usr/share/base-files/nsswitch.conf", "etc/nsswitch.conf"),
        ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
        ("usr/share/debianutils/shells", "etc/shells"),
    ):
        _copy(root, source, target)
    with open(os.path.join(root, "etc/shells"), "a", encoding="utf-8") as file:
        file.write(
            "/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/rbash\n/usr/bin/rbash\n/bin/dash\n/usr/bin/dash\n"
        )
    if os.path.isdir(os.path.join(root, "usr/share/zoneinfo")):
        if not os.path.lexists(os.path.join(root, "etc/localtime")):
            os.symlink("/usr/share/zoneinfo/Etc/UTC", os.path.join(root, "etc/localtime"))
        _write(root, "etc/timezone", "Etc/UTC\n")
    _write(root, "etc/environment", "")
    _write(root, "etc/machine-id", "")
    _write(root, "etc/dpkg/dpkg.cfg.d/image", DPKG_CONFIG)
    _write(root, "etc/apt/apt.conf.d/80image", _APT_CONFIG)
    _write(root, "usr/sbin/policy-rc.d", "#!/bin/sh\n# No service starts while an image is made.\nexit 101\n", 0o755)


def _pam(root: str) -> None:
    for name, text in _PAM.items():
        if not os.path.exists(os.path.join(root, "etc/pam.d", name)):
            _write(root, "etc/pam.d/" + name, text)


def _alternatives(root: str) -> None:
    """mawk, debianutils, util-linux: the names that `update-alternatives` hands out."""
    wanted = (
        ("usr/bin/awk", "awk", "usr/bin/mawk", 5, (("usr/bin/nawk", "nawk"),)),
        ("usr/bin/which", "which", "usr/bin/which.debianutils", 0, ()),
        ("usr/bin/pager", "pager", "usr/bin/more", 50, ()),
    )
    base = os.path.join(root, "var/lib/dpkg/alternatives")
    os.makedirs(base, exist_ok=True)
    os.makedirs(os.path.join(root, "etc/alternatives"), exist_ok=True)
    for link, name, program, priority, more in wanted:
        if not os.path.exists(os.path.join(root, program)) or os.path.lexists(os.path.join(root, link)):
            continue
        lines = ["auto", "/" + link]
        for other_link, other in more:
            lines += [other, "/" + other_link]
        lines += ["", "/" + program, str(priority), *("/" + program for _ in more), ""]
        _write(root, f"var/lib/dpkg/alternatives/{name}", "\n".join(lines) + "\n")
        for one_link, one in ((link, name), *more):
            os.symlink("/etc/alternatives/" + one, os.path.join(root, one_link))
            os.symlink("/" + program, os.path.join(root, "etc/alternatives", one))


def _certificates(root: str) -> None:
    """ca-certificates: the bundle, one link an authority, and links by subject hash, which Python's ssl looks up."""
    store = os.path.join(root, "usr/share/ca-certificates")
    found = sorted(glob.glob("**/*.crt", root_dir=store, recursive=True))
    if not found:
        return
    certs = os.path.join(root, "etc/ssl/certs")
    os.makedirs(certs, exist_ok=True)
    _write(root, "etc/ca-certificates.conf", "".join(one + "\n" for one in found))
    bundle = []
    with tempfile.TemporaryDirectory() as scratch:
        for one in found:
            name = os.path.basename(one).removesuffix(".crt").replace(" ", "_") + ".pem"
            with open(os.path.join(store, one), encoding="utf-8") as file:
                text = file.read()
            bundle.append(text if text.endswith("\n") else text + "\n")
            with open(os.path.join(scratch, name), "w", encoding="utf-8") as file:
                file.write(text)
            os.symlink("/usr/share/ca-certificates/" + one, os.path.join(certs, name))
        # The tree's own openssl names the hashes; the links it makes are relative and are moved over.
        subprocess.run(inside(root, "usr/bin/openssl", "rehash", scratch), capture_output=True, check=False)
        for name in os.listdir(scratch):
            if os.path.islink(os.path.join(scratch, name)):
                os.symlink(os.readlink(os.path.join(scratch, name)), os.path.join(certs, name))
    _write(root, "etc/ssl/certs/ca-certificates.crt", "".join(bundle))


def loader_cache(root: str) -> None:
    """libc-bin: /etc/ld.so.cache. Needs root, for chroot; without it the loader searches its built-in directories."""
    if os.geteuid() == 0:
        subprocess.run(
            ["ldconfig", "-r", root], capture_output=True, check=False, env={"PATH": "/usr/sbin:/sbin:/usr/bin"}
        )
        numbers = os.path.join(root, "var/cache/ldconfig/aux-cache")  # of inodes here
        if os.path.exists(numbers):
            os.unlink(numbers)


def inside(root: str, program: str, *args: str) -> list[str]:
    """The command line that runs a program of the tree on this machine, by the tree's own loader and libraries.

    No chroot, hence no root; the tree's architecture is the machine's.
    """
    loaders = glob.glob(os.path.join(root, "usr/lib64/ld-linux-*.so.*")) + glob.glob(
        os.path.join(root, "usr/lib/ld-linux-*.so.*")
    )
    if not loaders:
        raise FileNotFoundError(f"no dynamic loader in {root}")
    loader = loaders[0]
    while os.path.islink(loader):  # an absolute link means a path of the tree
        target = os.readlink(loader)
        loader = root + target if target.startswith("/") else os.path.join(os.path.dirname(loader), target)
    libraries = [one for one in glob.glob(os.path.join(root, "usr/lib/*-linux-*")) if os.path.isdir(one)]
    return [loader, "--library-path", ":".join(libraries), os.path.join(root, program), *args]


def unpack_wheels(root: str, packages_dir: str) -> list[str]:
    """Put pip (and setuptools, where the suite still brings it) where pip can replace them; gives their names.

    The distribution's own `python3-pip` is under dpkg's care and would refuse to be upgraded; these are the same files
    from the wheels that `python3-venv` carries.
    """
    target = os.path.join(root, packages_dir)
    os.makedirs(target, exist_ok=True)
    done = []
    for name in ("pip", "setuptools", "wheel"):
        for wheel in glob.glob(os.path.join(root, f"usr/share/python-wheels/{name}-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
            done.append(name)
    return done
