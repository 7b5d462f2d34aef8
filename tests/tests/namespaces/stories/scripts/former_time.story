# A segment in the window with a stale timestamp is answered with an ACK, and its data, ACK and FIN are ignored
# (RFC 7323, section 5.3). A RST is accepted whatever its timestamp is.
connect timestamps
> S 0 ts 0 0
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK ts 0 0
> . 1 ack 1 ts 20 0
+10ms < P. 1:101 ack 1 ts 100 20
> . 1 ack 101 ts 30 100
read 100
+2s < P. 101:201 ack 1 ts 99 20
> . 1 ack 101 ts 2030 100
+2s < F. 101 ack 1 ts 99 20
> . 1 ack 101 ts 4030 100
write 100
> P. 1:101 ack 101 ts 4030 100
+10ms < . 101 ack 101 ts 99 20
state Established
+10ms < P. 101:201 ack 101 ts 100 4030
> . 101 ack 201 ts 4050 100
read 100
+10ms < R 201 ts 50 0
error reset
finished
