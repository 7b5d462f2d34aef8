# Without an MSS option of the peer the default of IPv4 applies, 536 bytes (RFC 9293, section 3.7.1).
connect
> S 0
+20ms < S. 0 ack 1
> . 1 ack 1
write 1200
> . 1:537 ack 1
> . 537:1073 ack 1
> P. 1073:1201 ack 1
+20ms < . 1 ack 1201
