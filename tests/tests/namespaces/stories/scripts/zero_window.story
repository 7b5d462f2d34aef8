# A zero window is probed (RFC 9293, section 3.8.6.1), and waiting data is sent when it opens.
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 win 1000
> . 1 ack 1
write 1000
> P. 1:1001 ack 1
+20ms < . 1 ack 1001 win 0
write 500
> . 1001:1002 ack 1
+20ms < . 1 ack 1001 win 0
+2s > . 1001:1002 ack 1
+20ms < . 1 ack 1001 win 0
+4s > . 1001:1002 ack 1
+20ms < . 1 ack 1001 win 500
> P. 1001:1501 ack 1
+20ms < . 1 ack 1501
quiet 5s
