# SPDX-License-Identifier: LGPL-2.1-or-later
"""What any daemon needs: workers with a deadline, log lines, whole files, exit codes, the service
manager."""
