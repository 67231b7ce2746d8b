# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor`: the checks of a host."""
