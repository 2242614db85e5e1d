#!/bin/sh
# A change of the configuration may set the CloudWatch agent up anew.
exec /var/app/current/.platform/hooks/postdeploy/10_stream_log_file.sh
