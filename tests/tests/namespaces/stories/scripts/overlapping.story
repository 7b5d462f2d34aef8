# Retransmissions with other segment boundaries: each byte is delivered once, and each segment is acknowledged.
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
+10ms < P. 1:101 ack 1
> . 1 ack 101
+10ms < P. 51:151 ack 1
> . 1 ack 151
+1s < P. 1:51 ack 1
> . 1 ack 151
+10ms < P. 1:201 ack 1
> . 1 ack 201
read 200
