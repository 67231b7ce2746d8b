# SPDX-License-Identifier: LGPL-2.1-or-later
"""Building blocks of any daemon: workers with a deadline, log lines, atomic files, exit codes, the
service manager."""
