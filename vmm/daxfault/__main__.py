# SPDX-License-Identifier: Apache-2.0
"""`python -m daxfault` is `daxfault`."""

from daxfault.vmm.cli.main import main

if __name__ == "__main__":
    main()
