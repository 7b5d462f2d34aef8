# A request and its response; the server closes first (RFC 9293, sections 3.5 and 3.6).
connect
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
state Established
write 100
> P. 1:101 ack 1
+20ms < . 1 ack 101
+10ms < P. 1:501 ack 101
> . 101 ack 501
read 500
+10ms < F. 501 ack 101
> . 101 ack 502
eof
close
> F. 101 ack 502
+20ms < . 502 ack 102
finished
