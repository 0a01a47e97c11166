#!/bin/sh
# uv by hash into /uv: through the same index, proxy and CA as everything else, so there is no second registry to reach.
. /run/common.sh
refuse_offline uv /run/uv.txt
download uv /run/uv.txt /tmp/wheels
python3 -B -S - /tmp/wheels/uv-*.whl <<'END'
import pathlib, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith(".data/scripts/uv"))
    target = pathlib.Path("/uv/bin/uv")
    target.parent.mkdir(parents=True)
    target.write_bytes(wheel.read(name))
    target.chmod(0o755)
END
