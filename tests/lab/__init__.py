# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab: a real cluster of N hosts inside one machine.

Real sanlock, libvirtd, QEMU and IPMI BMC per host; see ``cluster.Cluster`` for the
Python face and ``python -m tests.lab --help`` for the command line.

How it is held together (one rule per line, each has its reason in the file named):

1. The whole lab is one tree of PID namespaces. Its root is the switch (switch.py);
   hosts (host_init.py) and BMCs (bmc.py) are nested in it. Killing that one process
   takes everything: processes, mounts, interfaces, for all of them live in unnamed
   namespaces that nothing else holds.
2. The machine's own mount table and network are never written to, so two labs can
   use the same addresses side by side and ``down`` has nothing to undo.
3. A process is named by its pid *and* its start time, never by pid or name alone
   (processes.py): pids are reused.
4. Each host sees the shared storage through a file system of its own (host_storage.py)
   that runs in the host: killing the host ends whatever hangs in it.
5. What ``status`` says is read from /proc and from the guest's page, never asked of
   the daemons under test.
"""
