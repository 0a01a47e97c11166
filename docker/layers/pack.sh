#!/bin/sh
# What this stage has written (the list /written), as archives below /packed, for merge.sh. Not the files as they are:
# BuildKit reads all that a step mounts from another stage, and takes seconds for so many files. Four archives, that all
# CPUs unpack them.
set -eu
mkdir /packed
cd /
sort -z /written >/tmp/all
# The names of one file stay together: a link is a link in its archive alone.
find -files0-from /tmp/all -maxdepth 0 \
    \( -type d -fprint0 /tmp/folders -o -links 1 -fprint0 /tmp/single -o -fprint0 /tmp/linked \)
split --separator='\0' --number=r/4 /tmp/single /tmp/files-
cat /tmp/linked >>/tmp/files-aa
# The same bytes again when it is built again: without the times of access and change, which pax headers would have.
printf '%s\n' folders files-aa files-ab files-ac files-ad | xargs -P 4 -I '{}' \
    tar --create --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
    --xattrs --xattrs-include=security.capability --null --no-recursion --files-from=/tmp/'{}' --file=/packed/'{}'
