"""The system calls that a container may make: our own profile, pure.

An allow list, because a new kernel's calls must not be open by default. What is on no list answers ENOSYS, so that
programs fall back as on an older kernel; what is refused on purpose answers EPERM. One architecture only: a filter for
three takes 14 ms to compile, for one less than 1 ms; 32-bit programs therefore do not run.

On aarch64 the names that only x86_64 has are left out; on any other machine there is no filter, and the probe says so.
"""

from __future__ import annotations

from typing import Any, Optional

ENOSYS = 38
EPERM = 1

# clone(2)'s flags that make a namespace: NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NAMESPACE_FLAGS = 0x7E020080
TIOCSTI = 0x5412
AF_ALG = 38
AF_VSOCK = 40

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}


def _words(text: str) -> list[str]:
    return text.split()


ALLOWED = _words("""
accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown clock_adjtime clock_getres
clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat
get_mempolicy get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname
getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr listxattrat llistxattr
lremovexattr lseek lsetxattr lstat madvise map_shadow_stack mbind membarrier memfd_create memfd_secret migrate_pages
mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt move_pages mprotect mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2
pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_madvise process_mrelease
process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir
rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_mempolicy set_mempolicy_home_node
set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid
setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack
signalfd signalfd4 socketpair splice stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid
write writev chroot
""")

REFUSED = _words("""
acct add_key bpf clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick init_module
io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount
mount_setattr move_mount open_by_handle_at open_tree perf_event_open pivot_root quotactl
quotactl_fd reboot request_key setdomainname sethostname setns settimeofday swapoff swapon syslog umount2 userfaultfd
vhangup
""")

X86_64_ONLY = frozenset(
    _words("""
access alarm arch_prctl chmod chown creat dup2 epoll_create epoll_wait eventfd fork futimesat getdents getpgrp
inotify_init ioperm iopl lchown link lstat mkdir mknod modify_ldt open pause pipe poll readlink rename
rmdir select signalfd stat symlink time unlink utime utimes vfork
""")
)


def _rule(
    names: list[str], action: str, *args: tuple[int, int, int, str], errno: Optional[int] = None
) -> dict[str, Any]:
    """One rule. Each of ``args`` is (argument's index, value, second value, comparison); all must hold."""
    rule: dict[str, Any] = {"names": names, "action": action}
    if errno is not None:
        rule["errnoRet"] = errno
    if args:
        rule["args"] = [{"index": i, "value": v, "valueTwo": w, "op": op} for i, v, w, op in args]
    return rule


def all_but(number: int) -> list[tuple[int, int, str]]:
    """(value, second value, comparison): one holds for every ioctl but ``number``, which has 16 bits.

    The kernel takes an int from the lower half of a register, and the filter sees the whole: a comparison for being
    unequal would let ``number`` pass with any bit above (CVE-2019-10063). What is less, as 64 bits, is safe; what is
    greater is told by the highest bit that differs. Numbers above 16 bits have a direction in bits 30 and 31
    (ioctl-number.rst); a comparison for each bit between, for numbers that nothing has, costs tenths of a millisecond
    a start.
    """
    found = [
        (number, 0, "SCMP_CMP_LT"),
        (1 << 31, 1 << 31, "SCMP_CMP_MASKED_EQ"),
        (3 << 30, 1 << 30, "SCMP_CMP_MASKED_EQ"),
    ]
    for bit in reversed(range(16)):
        if not number >> bit & 1:
            mask = 0xFFFFFFFF & ~((1 << bit) - 1)
            found.append((mask, (number | 1 << bit) & mask, "SCMP_CMP_MASKED_EQ"))
    return found


def profile(machine: str) -> Optional[dict[str, Any]]:
    """The ``linux.seccomp`` of OCI for a machine name of uname(2), or None when we have none for it."""
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        return None

    def here(names: list[str]) -> list[str]:
        return names if machine == "x86_64" else [name for name in names if name not in X86_64_ONLY]

    allow, refuse = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
    no_namespace = (0, NAMESPACE_FLAGS, 0, "SCMP_CMP_MASKED_EQ")
    rules = [
        _rule(here(sorted(ALLOWED)), allow),
        _rule(here(sorted(REFUSED)), refuse, errno=EPERM),
        # No namespaces of one's own: most holes of recent kernels begin with a user namespace. clone3 passes its flags
        # in memory, where no filter sees them: ENOSYS makes the C library fall back to clone.
        _rule(["clone"], allow, no_namespace),
        _rule(["unshare"], allow, no_namespace),
        _rule(["clone3"], refuse, errno=ENOSYS),
        # A terminal that is shared with the host must not be typed into.
        *[_rule(["ioctl"], allow, (1, *one)) for one in all_but(TIOCSTI)],
        # The address families before AF_ALG, so neither that nor AF_VSOCK; those after it are for hardware.
        _rule(["socket"], allow, (0, AF_ALG, 0, "SCMP_CMP_LT")),
    ]
    # Linux, Linux with 16-bit uname, no address randomisation (debuggers), and the query.
    for persona in (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF):
        rules.append(_rule(["personality"], allow, (0, persona, 0, "SCMP_CMP_EQ")))
    return {
        "defaultAction": refuse,
        "defaultErrnoRet": ENOSYS,
        "architectures": [architecture],
        "syscalls": rules,
    }
