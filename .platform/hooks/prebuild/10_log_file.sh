#!/bin/sh
# Make the log file (LOG_FILE) before anything writes to it. The migration runs as root, and a file that it made would
# be closed to the application, which runs as webapp.
set -eu
directory=/opt/python/log
file=$directory/openemr-product-registration.log

install --directory --owner=webapp --group=webapp --mode=0755 "$directory"
touch "$file"
chown webapp:webapp "$file"
