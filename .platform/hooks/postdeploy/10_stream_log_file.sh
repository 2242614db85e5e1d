#!/bin/sh
# Stream the log file to CloudWatch too: Elastic Beanstalk streams the output of `web`, but not that of `sender`.
# A deployment does not fail for it.
agent=/opt/aws/amazon-cloudwatch-agent
"$agent/bin/amazon-cloudwatch-agent-ctl" -a append-config -m ec2 -s \
    -c "file:$agent/etc/openemr-product-registration.json" ||
    echo "The log file is not streamed to CloudWatch." >&2
