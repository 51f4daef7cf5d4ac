# System calls that no machine which shares the host's kernel has.
{
  # Programs are told that they may not.
  refused = [
    "acct"
    "bpf"
    "delete_module"
    "finit_module"
    "init_module"
    "kexec_file_load"
    "kexec_load"
    "open_by_handle_at"
    "perf_event_open"
    "quotactl"
    "swapoff"
    "swapon"
    "userfaultfd"
  ];
  # The kernel has one set of keyrings for all, and what is asked for by a ring (io_uring) passes no filter. Programs do
  # without when there are none, but some fail when they are refused.
  absent = [
    "add_key"
    "io_uring_enter"
    "io_uring_register"
    "io_uring_setup"
    "keyctl"
    "request_key"
  ];
}
