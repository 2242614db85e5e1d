#!/bin/sh
# A change of the configuration may set the CloudWatch agent up anew.
exec .platform/hooks/postdeploy/10_stream_log_file.sh
