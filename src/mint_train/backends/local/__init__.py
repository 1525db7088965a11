import logging

# PEFT imports bitsandbytes where it is installed, which warns on some processors of a kernel not used here
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
