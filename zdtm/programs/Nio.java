import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.nio.file.*;

/** A server on a unix socket with selectors, and clients, in one virtual machine. */
public class Nio {
    static volatile long answers;
    static volatile boolean over;

    static void wrong(String text) {
        try {
            Files.writeString(Path.of("wrong"), text + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        } catch (Exception e) {
            throw new RuntimeException(e);
        }
    }

    static void serve(ServerSocketChannel server) throws Exception {
        Selector selector = Selector.open();
        server.configureBlocking(false);
        server.register(selector, SelectionKey.OP_ACCEPT);
        ByteBuffer room = ByteBuffer.allocate(8);
        while (!over) {
            selector.select(100);
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel peer = server.accept();
                    peer.configureBlocking(false);
                    peer.register(selector, SelectionKey.OP_READ);
                } else if (key.isReadable()) {
                    SocketChannel peer = (SocketChannel) key.channel();
                    room.clear();
                    if (peer.read(room) == 8) {
                        room.flip();
                        long number = room.getLong();
                        room.clear();
                        room.putLong(number + 1).flip();
                        peer.write(room);
                    }
                }
            }
            selector.selectedKeys().clear();
        }
    }

    static void ask(UnixDomainSocketAddress address) throws Exception {
        SocketChannel client = SocketChannel.open(address);
        ByteBuffer room = ByteBuffer.allocate(8);
        for (long number = 0; !over; number++) {
            room.clear();
            room.putLong(number).flip();
            client.write(room);
            room.clear();
            while (room.hasRemaining()) {
                if (client.read(room) < 0) {
                    wrong("cut off");
                    return;
                }
            }
            room.flip();
            long answer = room.getLong();
            if (answer != number + 1) {
                wrong(answer + " after " + number);
            }
            synchronized (Nio.class) {
                answers++;
            }
            Thread.sleep(1);
        }
    }

    interface Work {
        void run() throws Exception;
    }

    static void start(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception e) {
                if (!over) {
                    wrong(e.toString());
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    public static void main(String[] words) throws Exception {
        if (words[0].equals("check")) {
            System.exit(Long.parseLong(Files.readString(Path.of("result")).trim()) > 0 ? 0 : 1);
        }
        UnixDomainSocketAddress address = UnixDomainSocketAddress.of("socket");
        ServerSocketChannel server = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
        server.bind(address);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            over = true;
            try {
                Files.writeString(Path.of("result"), answers + "\n");
            } catch (Exception e) {
                wrong(e.toString());
            }
        }));
        start(() -> serve(server));
        for (int i = 0; i < 3; i++) {
            start(() -> ask(address));
        }
        while (true) {
            Thread.sleep(20);
            Files.writeString(Path.of("progress"), Long.toString(answers));
            if (answers > 50) {
                Files.writeString(Path.of("ready"), "");
            }
        }
    }
}
