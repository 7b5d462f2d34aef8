# The application closes and continues to read; in TIME-WAIT a retransmitted FIN is acknowledged again (RFC 9293, section 3.6).
connect time-wait 2s
> S 0 sackOK
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
close
> F. 1 ack 1
+20ms < . 1 ack 2
+1s < P. 1:101 ack 2
> . 2 ack 101
read 100
+10ms < F. 101 ack 2
> . 2 ack 102
eof
+500ms < F. 101 ack 2
> . 2 ack 102
quiet 2.1s
finished
