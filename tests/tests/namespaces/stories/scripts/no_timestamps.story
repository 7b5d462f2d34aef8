# The peer does not accept timestamps: segments after the SYN have none, and their room is used for data.
connect timestamps
> S 0 ts 0 0
+20ms < S. 0 ack 1 mss 1400 wscale 7 sackOK
> . 1 ack 1
write 1400
> P. 1:1401 ack 1
+20ms < . 1 ack 1401
+10ms < P. 1:101 ack 1401
> . 1401 ack 101
read 100
quiet 5s
