"""Where artifacts run: this machine, emulated ones, and others that ssh, adb or a tracker reaches."""
