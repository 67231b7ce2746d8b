# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker answers: on its UNIX socket, over HTTP, to Prometheus, and the dashboard."""
