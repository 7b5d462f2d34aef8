# Three duplicate ACKs cause a retransmission before the timer expires (RFC 5681, section 3.2).
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1024 wscale 7 sackOK
> . 1 ack 1
write 5120
> . 1:1025 ack 1
> . 1025:2049 ack 1
+20ms < . 1 ack 1025
> . 2049:3073 ack 1
> . 3073:4097 ack 1
+20ms < . 1 ack 1025 sack 2049:3073
quiet 1ms
< . 1 ack 1025 sack 2049:4097
quiet 1ms
< . 1 ack 1025 sack 2049:4097
> . 1025:2049 ack 1
# The segments that the duplicate ACKs report as received make room for new data.
> P. 4097:5121 ack 1
+20ms < . 1 ack 5121
quiet 5s
