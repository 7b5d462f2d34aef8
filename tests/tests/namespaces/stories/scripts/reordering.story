# A segment after a gap is acknowledged at once (RFC 5681, section 4.2) and reported by SACK (RFC 2018).
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
+10ms < P. 101:201 ack 1
> . 1 ack 1 sack 101:201
+10ms < P. 201:301 ack 1
> . 1 ack 1 sack 101:301
+10ms < P. 1:101 ack 1
> . 1 ack 301
read 300
