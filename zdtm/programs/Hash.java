// Four threads, each with a chain of hashes: a link is the SHA-256 of the one before.

import java.io.BufferedReader;
import java.io.File;
import java.io.FileReader;
import java.io.FileWriter;
import java.io.RandomAccessFile;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;

// Without java.nio: that keeps one end of a socket pair, to close descriptors with.
class Hash {
    static final int THREADS = 4;
    // Every so many links one is remembered, so that the way from there to the next can be walked again.
    static final int STRIDE = 500;

    static volatile boolean stop;

    static byte[] walk(byte[] link, long count) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        for (long i = 0; i < count; i++) {
            link = digest.digest(link);
        }
        return link;
    }

    static byte[] seed(int number) throws Exception {
        return MessageDigest.getInstance("SHA-256").digest(("java " + number).getBytes());
    }

    static class Worker extends Thread {
        final int number;
        final List<byte[]> stones = new ArrayList<>();
        volatile int length;

        Worker(int number) throws Exception {
            this.number = number;
            stones.add(seed(number));
        }

        @Override
        public void run() {
            try {
                for (int at = 0; !stop; at = (at * 7 + 3) % (stones.size() - 1)) {
                    stones.add(walk(stones.get(stones.size() - 1), STRIDE));
                    length = stones.size() - 1;
                    if (!Arrays.equals(walk(stones.get(at), STRIDE), stones.get(at + 1))) {
                        wrong("thread " + number + ": the chain is broken after " + at * STRIDE + " links");
                    }
                    Thread.sleep(1);
                }
            } catch (Exception error) {
                wrong("thread " + number + ": " + error);
            }
        }
    }

    static synchronized void wrong(String text) {
        try (FileWriter file = new FileWriter("wrong", true)) {
            file.write(text + "\n");
        } catch (Exception error) {
            error.printStackTrace();
        }
    }

    static void run() throws Exception {
        Worker[] workers = new Worker[THREADS];
        for (int i = 0; i < THREADS; i++) {
            workers[i] = new Worker(i);
            workers[i].start();
        }
        Runtime.getRuntime().addShutdownHook(new Thread(() -> finish(workers)));
        RandomAccessFile progress = new RandomAccessFile("progress", "rw");
        for (boolean ready = false; !stop; Thread.sleep(10)) {
            StringBuilder text = new StringBuilder();
            int least = Integer.MAX_VALUE;
            for (Worker worker : workers) {
                text.append(String.format("%12d", worker.length));
                least = Math.min(least, worker.length);
            }
            progress.seek(0);
            progress.write(text.toString().getBytes());
            if (!ready && least > 2) {
                ready = true;
                new File("ready").createNewFile();
            }
        }
    }

    static void finish(Worker[] workers) {
        try {
            stop = true;
            StringBuilder text = new StringBuilder();
            for (Worker worker : workers) {
                worker.join();
                byte[] last = worker.stones.get(worker.length);
                text.append(worker.length + " " + HexFormat.of().formatHex(last) + "\n");
            }
            try (FileWriter file = new FileWriter("result.new")) {
                file.write(text.toString());
            }
            new File("result.new").renameTo(new File("result"));
        } catch (Exception error) {
            wrong("at the end: " + error);
        }
    }

    static void check() throws Exception {
        BufferedReader lines = new BufferedReader(new FileReader("result"));
        for (int i = 0; i < THREADS; i++) {
            String[] words = lines.readLine().split(" ");
            byte[] link = walk(seed(i), Long.parseLong(words[0]) * STRIDE);
            if (!HexFormat.of().formatHex(link).equals(words[1])) {
                System.out.println("thread " + i + ": another result after " + words[0] + " strides");
                System.exit(1);
            }
        }
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("run")) {
            run();
        } else {
            check();
        }
    }
}
