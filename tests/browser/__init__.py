# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard in a real browser: Debian's headless Chromium, driven by Playwright."""
